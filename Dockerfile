# docker build -t paretrain --build-arg COMMIT="$(git rev-parse HEAD)" .
# docker build -t paretrain --build-arg COMMIT="$(git rev-parse HEAD)" --build-arg DEVICE=cpu .    (no GPU: smaller)
# docker run --rm paretrain --help
# docker run --rm --gpus all --shm-size=8g -v "$PWD:/workspace" paretrain train configs/celeba.yaml --processes 8
#
# --shm-size: data workers hand their batches over in shared memory, of which a container has 64 MB otherwise.
# -v: the run's folder is the one that you start it in; --user "$(id -u):$(id -g)" if it is not writable for user 1000.
#
# Tried on 2026-11-22 without a container engine: the steps in two clean Debian 12 roots (debootstrap, Python 3.11.2),
# the second without a compiler, its last ones as user 1000; there all strategies trained. Not tried: `docker build` itself,
# and what came later: DEVICE, COMMIT, libibverbs.

# The tag, not a digest: a digest has to be read from the registry, which was not reached from where this was written. Pin it
# with --build-arg BASE=python@sha256:... where a build must be the same in years.
ARG BASE=python:3.11.7-slim-bookworm

FROM ${BASE} AS build
# cuda: the build fails where pip finds a torch without CUDA. cpu: it takes PyTorch's own CPU packages.
ARG DEVICE=cuda
# A compiler for what has no wheel; it stays here.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends build-essential \
    && rm -rf /var/lib/apt/lists/*
RUN python -m venv /opt/paretrain
ENV PATH=/opt/paretrain/bin:$PATH
WORKDIR /src
# First what changes rarely, so that a change of the code does not fetch torch again. The empty packages leave a build
# folder, which later files would not replace: theirs are older.
COPY setup.cfg setup.py pyproject.toml constraints.txt README.md LICENSE ./
RUN if [ "$DEVICE" = cpu ]; then pip config --site set global.extra-index-url https://download.pytorch.org/whl/cpu; fi \
    && mkdir paretrain trainer models launch && touch paretrain_command.py trainer/__init__.py models/__init__.py launch/__init__.py \
    && echo '__version__ = "0"' > paretrain/__init__.py \
    && pip install --no-cache-dir --constraint constraints.txt '.[train,wandb,s3,torchjd,deepspeed]' \
    && rm -r build
RUN python -c "import os, sys, torch; found = 'cuda' if torch.version.cuda else 'cpu'; found == os.environ['DEVICE'] \
    or sys.exit('DEVICE=' + os.environ['DEVICE'] + ' was asked for, and torch ' + torch.__version__ + ' is built for ' + found)"
COPY . .
# git is not here: the commit comes from outside, and goes into run.json and checkpoints.
ARG COMMIT=
RUN PARETRAIN_COMMIT=$COMMIT pip install --no-cache-dir --no-deps --force-reinstall .

FROM ${BASE}
# NCCL speaks InfiniBand through libibverbs, where the host has it.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends libibverbs1 ibverbs-providers librdmacm1 \
    && rm -rf /var/lib/apt/lists/*
# What the NVIDIA container runtime mounts.
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=build /opt/paretrain /opt/paretrain
COPY configs /opt/paretrain/configs
ENV PATH=/opt/paretrain/bin:$PATH PYTHONUNBUFFERED=1
RUN useradd --create-home --uid 1000 trainer && install --directory --owner trainer /workspace \
    && ln -s /opt/paretrain/configs /workspace/configs
USER 1000
WORKDIR /workspace
# Smoke: the command, the packaged scripts, and two processes that train.
RUN paretrain --help \
    && paretrain data digits --out /tmp/smoke/digits \
    && paretrain train configs/digits.yaml --processes 2 \
        output=/tmp/smoke/runs data.path=/tmp/smoke/digits train.steps=2 train.eval_every_steps=2 \
    && paretrain submit configs/digits.yaml --nodes 2 --processes-per-node 1 --dry-run \
    && rm -r /tmp/smoke
ENTRYPOINT ["paretrain"]
CMD ["--help"]
