"""The paper's protocol: base models → K → the same fine-tuning for all, at equal K."""
