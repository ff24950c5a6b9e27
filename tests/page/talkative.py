"""A tiny pipeline of every sense that answers in letters, as slowly as a test wants."""

import time
from contextlib import contextmanager

import folders
import torch

from adapter_llm.pipeline import Pipeline


class Talkative:
    """`pipe`, `delay` seconds before each token, and `encoded`: how many inputs were encoded so far."""

    def __init__(self, folder, decoder):
        folders.save_weights(folder, decoder, sizes=folders.every_sense())
        self.pipe = Pipeline.from_pretrained(folder, llm=decoder, device="cpu", dtype="float32")
        self.delay, self.encoded = 0.0, 0
        words = self.pipe.processor.tokenizer
        texts = [words.decode([token]) for token in range(len(words))]
        letters = torch.tensor([text.replace(" ", "a").isalpha() and text.isascii() for text in texts])
        llama, encoder = self.pipe.model.llama, self.pipe.model.encoder
        llama.register_forward_pre_hook(lambda module, inputs: time.sleep(self.delay))
        llama.lm_head.register_forward_hook(lambda module, inputs, logits: logits.masked_fill(~letters, -100.0))
        encoder.register_forward_pre_hook(self._count)

    def _count(self, module, inputs):
        self.encoded += 1

    @contextmanager
    def slowly(self, delay=0.05):
        self.delay = delay
        try:
            yield
        finally:
            self.delay = 0.0

    @contextmanager
    def says(self, text):
        with folders.says(self.pipe, text) as calls:
            yield calls
