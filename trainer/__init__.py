"""The engine: trains many tasks on one shared encoder, on any number of processes. `paretrain` is its library."""

from paretrain_command import refuse_hidden

refuse_hidden()  # Before an import of ours can fail because of it.
