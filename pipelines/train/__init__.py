"""One DeepSpeed training job: under Ray Train, or under torchrun without Ray."""
