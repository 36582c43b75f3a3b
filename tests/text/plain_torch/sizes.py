"""Sizes of the model beside this file: read from config.json, key by key."""


class SmallConfig:
    def __init__(self, **values):
        self.__dict__.update(values)
        self.head_dim = self.hidden_size // self.num_attention_heads
