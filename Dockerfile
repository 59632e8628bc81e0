# docker build -t paretrain . && docker run --rm --shm-size=1g paretrain train configs/digits.yaml --processes 2
FROM python:3.11.7-slim-bookworm

RUN apt-get update \
    && apt-get install -y --no-install-recommends build-essential git \
    && rm -rf /var/lib/apt/lists/*
RUN useradd --create-home trainer && install --directory --owner trainer /home/trainer/paretrain
WORKDIR /home/trainer/paretrain
COPY --chown=trainer:trainer . .
RUN pip install --no-cache-dir --constraint constraints.txt '.[wandb]'
USER trainer
RUN paretrain --help && paretrain data digits --out data/digits
ENTRYPOINT ["paretrain"]
CMD ["--help"]
