"""Point clouds: groups of points -> tokens, and the trunk that reads them.

Shapes: B batch, P points, G groups, K points in a group, C channels of a group, N class tokens,
W width. The design is Point-BERT's (Yu et al., arXiv:2111.14819), its group encoder a small
PointNet (Qi et al., arXiv:1612.00593).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .config import Modality, PointStemConfig, TrunkConfig
from .modalities import POINT_NORM_EPS
from .stems import StemOutput
from .transformer import Trunk

POINT_CHANNELS = (128, 256)  # of one point on its way through the group encoder
GROUP_CHANNELS = 512  # of one point next to its group's maximum
POSITION_CHANNELS = 128


def sample_centers(points: Tensor, count: int, start: int) -> tuple[Tensor, Tensor]:
    """Farthest point sampling: each centre is the point farthest from all earlier ones, the first is `start`.

    points (B, P, 3) -> indices (B, count) in the order of sampling, and the squared distances (B, count, P)
    of all points to each centre. Where several are farthest, the first one is taken.
    """
    rows = torch.arange(len(points), device=points.device)
    index = torch.full_like(rows, start)
    to_nearest = torch.full_like(points[..., 0], torch.inf)
    indices, distances = [], []
    for _ in range(count):
        distance = (points - points[rows, index].unsqueeze(1)).square().sum(dim=-1)
        to_nearest = torch.minimum(to_nearest, distance)
        indices.append(index)
        distances.append(distance)
        index = to_nearest.argmax(dim=-1)
    return torch.stack(indices, dim=1), torch.stack(distances, dim=1)


def group_points(points: Tensor, config: PointStemConfig) -> tuple[Tensor, Tensor]:
    """points (B, P, 3) -> centres (B, G, 3) and the K points nearest to each, relative to it (B, G, K, 3)."""
    indices, distances = sample_centers(points, config.groups, config.start)
    nearest = distances.topk(config.group_size, dim=-1, largest=False, sorted=False).indices  # (B, G, K)
    rows = torch.arange(len(points), device=points.device).view(-1, 1)
    centers = points[rows, indices]
    return centers, points[rows.unsqueeze(-1), nearest] - centers.unsqueeze(2)


class GroupEncoder(nn.Module):
    """A group of points -> one vector that does not depend on their order.

    Batch norm always uses its published statistics, so a cloud's tokens do not depend on its batch.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        low, high = POINT_CHANNELS
        self.point_in = nn.Conv1d(3, low, 1)
        self.point_norm = nn.BatchNorm1d(low, eps=POINT_NORM_EPS)
        self.point_out = nn.Conv1d(low, high, 1)
        self.group_in = nn.Conv1d(2 * high, GROUP_CHANNELS, 1)
        self.group_norm = nn.BatchNorm1d(GROUP_CHANNELS, eps=POINT_NORM_EPS)
        self.group_out = nn.Conv1d(GROUP_CHANNELS, channels, 1)

    def train(self, mode: bool = True) -> "GroupEncoder":
        super().train(mode)
        self.point_norm.eval()
        self.group_norm.eval()
        return self

    def forward(self, groups: Tensor) -> Tensor:
        """(B, G, K, 3) -> (B, G, C)."""
        points = groups.flatten(0, 1).transpose(1, 2)  # (B * G, 3, K)
        points = self.point_out(F.relu(self.point_norm(self.point_in(points))))
        highest = points.amax(dim=-1, keepdim=True).expand_as(points)
        points = torch.cat([highest, points], dim=1)
        points = self.group_out(F.relu(self.group_norm(self.group_in(points))))
        return points.amax(dim=-1).unflatten(0, groups.shape[:2])


class PointStem(nn.Module):
    """Point clouds. Positions are computed from the centres; the trunk adds them before every block."""

    def __init__(self, config: TrunkConfig) -> None:
        super().__init__()
        self.stem: PointStemConfig = config.stem
        shape = (1, config.num_cls_tokens, config.width)
        self.cls_token = nn.Parameter(torch.empty(shape))
        self.cls_position = nn.Parameter(torch.empty(shape))
        self.group_encoder = GroupEncoder(self.stem.channels)
        self.projection = nn.Linear(self.stem.channels, config.width)
        self.position = nn.Sequential(
            nn.Linear(3, POSITION_CHANNELS), nn.GELU(), nn.Linear(POSITION_CHANNELS, config.width)
        )

    def forward(self, x: Tensor) -> StemOutput:
        """x (B, P, 3) -> tokens (B, N + G, W). Raises ValueError on a wrong shape, too few points, or a NaN."""
        if x.ndim != 3 or x.shape[2] != 3 or x.shape[1] < self.stem.least_points or not x.is_floating_point():
            raise ValueError(
                f"point input has shape {tuple(x.shape)} and type {x.dtype} but must be floating-point coordinates "
                f"(B, points, 3) of at least {self.stem.least_points} points; give one x, y, z a point"
            )
        if not x.isfinite().all():
            raise ValueError("point input holds coordinates that are not finite; leave those points out")
        # Which points are near is decided in full precision, whatever the weights are kept in.
        centers, groups = group_points(x.to(torch.promote_types(x.dtype, torch.float32)), self.stem)
        dtype = self.projection.weight.dtype
        patches = self.projection(self.group_encoder(groups.to(dtype)))
        front = len(x), -1, -1
        return StemOutput(
            tokens=torch.cat([self.cls_token.expand(front), patches], dim=1),
            position=torch.cat([self.cls_position.expand(front), self.position(centers.to(dtype))], dim=1),
        )


class PointTrunk(Trunk):
    """Ends in a norm of its own; a feature is made of a class token and the maximum over the groups."""

    def __init__(self, config: TrunkConfig) -> None:
        super().__init__(config, Modality.POINT)
        self.final_norm = nn.LayerNorm(config.width, eps=POINT_NORM_EPS)
        self.output_width = config.stem.output_width
        self.projection = nn.Parameter(torch.empty(2 * config.width, self.output_width))

    def forward(self, tokens: Tensor, mask: Tensor | None = None, position: Tensor | None = None) -> Tensor:
        """(B, N + G, W) -> (B, N + G, W), as in `Trunk`."""
        return self.final_norm(super().forward(tokens, mask, position))

    def pool(self, tokens: Tensor) -> Tensor:
        """(B, N + G, W) -> (B, N, 2 * W): each class token, then the maximum over the groups."""
        cls_tokens, patches = tokens[:, : self.num_cls_tokens], tokens[:, self.num_cls_tokens :]
        highest = patches.amax(dim=1, keepdim=True)
        return torch.cat([cls_tokens, highest.expand_as(cls_tokens)], dim=-1)

    def select(self, tokens: Tensor, read_at: Tensor | None = None) -> Tensor:
        """(B, N + G, W) -> (B, N, output_width); the class tokens stand in front, wherever features are read."""
        return self.pool(tokens) @ self.projection
