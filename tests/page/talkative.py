"""A tiny pipeline of every sense that answers in letters, as slowly as a test wants."""

from contextlib import contextmanager
from threading import Event

import folders
import torch

from adapter_llm.pipeline import Pipeline


class Talkative:
    """`pipe`, and `encoded`: how many inputs were encoded so far."""

    def __init__(self, folder, decoder, **options):
        folders.save_weights(folder, decoder, sizes=folders.every_sense())
        self.pipe = Pipeline.from_pretrained(folder, llm=decoder, device="cpu", dtype="float32", **options)
        self.encoded, self._delay, self._hurry = 0, 0.0, Event()
        words = self.pipe.processor.tokenizer
        texts = [words.decode([token]) for token in range(len(words))]
        letters = torch.tensor([text.replace(" ", "a").isalpha() and text.isascii() for text in texts])
        llama, encoder = self.pipe.model.llama, self.pipe.model.encoder
        llama.register_forward_pre_hook(self._wait)
        llama.lm_head.register_forward_hook(lambda module, inputs, logits: logits.masked_fill(~letters, -100.0))
        encoder.register_forward_pre_hook(self._count)

    def _count(self, module, inputs):
        self.encoded += 1

    def _wait(self, module, inputs):
        if self._delay:
            self._hurry.wait(self._delay)

    @contextmanager
    def slowly(self, delay=0.05):
        """Inside, each token takes so many seconds; what is not written yet at the end comes at once."""
        self._hurry.clear()
        self._delay = delay
        try:
            yield
        finally:
            self._delay = 0.0
            self._hurry.set()

    def says(self, text):
        """Inside, the answer to everything is this text."""
        return folders.says(self.pipe, text)
