"""The detector: backbone, neck, proposals and RoI head in one forward.

Shape letters: N images, H, W image size, D detections.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor, nn

from dcnzoo.models.fold import FoldedResNet
from dcnzoo.models.fpn import FPN
from dcnzoo.models.resnet import ResNet
from dcnzoo.models.rpn import RPNHead
from dcnzoo.ops import active_backend


class Instances(NamedTuple):
    """Detections of one image as tensors, by descending score.

    Attributes:
        boxes: (D, 4) float32 xyxy, pixels of the original image.
        scores: (D,) float32 in 0–1.
        labels: (D,) int64 in 0…K-1.
        mask_probs: (D, 28, 28) float32 probabilities over the box; None for a detector without masks.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    mask_probs: Tensor | None


class RCNN(nn.Module):
    """Faster, Mask, Cascade or Cascade Mask R-CNN, depending on its RoI head.

    Submodules carry the published names, so that parameter names are the published ones.

    Args:
        backbone: images → c2–c5.
        neck: c2–c5 → p2–p6.
        rpn_head: p2–p6 → proposals.
        roi_head: p2–p5 and proposals → instances.

    Attributes:
        packed_for: kernels, as `dcnzoo.ops.active_backend` names them, that its weights are arranged for.
    """

    def __init__(self, backbone: ResNet, neck: FPN, rpn_head: RPNHead, roi_head: nn.Module) -> None:
        super().__init__()
        self.backbone: ResNet | FoldedResNet = backbone
        self.neck, self.rpn_head, self.roi_head = neck, rpn_head, roi_head
        self.packed_for: str | None = None

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Unpickles.

        Raises:
            RuntimeError: it was packed for other kernels, which read the weights in another order.
        """
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        here = active_backend()[1]
        if self.packed_for not in (None, here):
            raise RuntimeError(f"the model is packed for {self.packed_for}, not {here}; load its checkpoint")

    def _load_from_state_dict(self, *arguments: Any) -> None:
        if self.packed_for is not None:
            raise RuntimeError("a packed model takes no other weights; see `weights` of `dcnzoo.load`")
        super()._load_from_state_dict(*arguments)

    @property
    def has_masks(self) -> bool:
        """Whether its instances have masks."""
        return self.roi_head.mask_roi_extractor is not None

    def forward(
        self,
        images: Tensor,
        image_sizes: list[tuple[int, int]],
        original_sizes: list[tuple[int, int]],
        *,
        score_threshold: float = 0.05,
        max_detections: int = 100,
        labels: Tensor | None = None,
    ) -> list[Instances]:
        """Detects.

        Args:
            images: (N, 3, H, W) normalised, padded right and bottom; H and W divisible by 32.
            image_sizes: (height, width) of each image, resized and unpadded.
            original_sizes: (height, width) of each image as it was decoded.
            score_threshold: keep detections whose score exceeds it.
            max_detections: keep at most so many per image.
            labels: (L,) int64, the classes to look for, ascending; None for all.

        Returns:
            One `Instances` per image.
        """
        features = self.neck(self.backbone(images))
        proposals = [proposal[:, :4] for proposal in self.rpn_head(features, image_sizes)]
        instances: list[Instances] = self.roi_head(
            features, proposals, image_sizes, original_sizes, score_threshold, max_detections, labels
        )
        return instances
