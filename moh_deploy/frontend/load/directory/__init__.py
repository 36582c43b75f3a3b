"""Model directories: `config.json`, weights in one file or in shards, code, and a tokenizer."""
