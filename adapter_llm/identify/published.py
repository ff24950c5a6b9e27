"""Published files by their SHA-256; weights/README.md says who wrote each down."""

from __future__ import annotations

from collections.abc import Mapping

PUBLISHED: Mapping[str, str] = {
    "d6f6c22bedcc90708448d5d2fbb7b2db9c73f505dc89bd0b2e09b23af1b62157": "ImageBind's imagebind_huge.pth",
    "700df0d3013b703a806d2ae7f1bfb8e59814e3d06ae78be0c66368a50059f33d": "LLaMA 7B's consolidated.00.pth",
    "745bf4e29a4dd6f411e72976d92b452da1b49168a4f41c951cfcc8051823cf08": "LLaMA 13B's consolidated.00.pth",
    "d5ccbcc465c71c0de439a5aeffebe8344c68a519bce70bc7f9f92654ee567085": "LLaMA 13B's consolidated.01.pth",
    "7e89e242ddc0dd6f060b43ca219ce8b3e8f08959a72cb3c0855df8bb04d46265": "LLaMA 7B's params.json",
    "9e556afd44213b6bd1be2b850ebbbd98f5481437a8021afaf58ee7fb1818d347": "LLaMA's tokenizer.model",
    "7fa55208379faf2dd862565284101b0e4a2a72114d6490a95e432cf9d9b6c813": "LLaMA-Adapter V2's BIAS-7B.pth",
    "1bcbffc43484332672092e0024a8699a6eb5f558161aebf98a7c6b1db67224d1": "LLaMA-Adapter V2's LORA-BIAS-7B.pth",
    "d26d107eec32127ac86ef1997cf7169de1c56a59c539fc1258c6798b969e289c": "LLaMA-Adapter V2's LORA-BIAS-7B-v21.pth",
    "5088aeb63a89746b90bcfd5cb819e1c7411b2771b267c6d131ce73e250a8abf0": "LLaMA-Adapter V2's CAPTION-7B.pth",
    "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836": "OpenAI's ViT-L-14.pt",
    "a2bf730a0c7debf160f7a6b50b3aaf3703e7e88ac73de7a314903141db026dcb": "clip-vit-large-patch14's model.safetensors",
    "d065c75f0d387f6306c7a99565d411bd51e87d495b1dd63206836592504395bf": "ImageBind-LLM's 7B-beta.pth",
}
