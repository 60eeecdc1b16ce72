"""Vector quantisation whose codes are running means of what they stand for (van den Oord et al. 2017, appendix A.1)."""

import torch
import torch.nn.functional as F
from torch import nn

from latentia.codecs.quantizers.kmeans import assigned, draw, kmeans
from latentia.codecs.quantizers.nearest import nearest_codes
from latentia.codecs.quantizers.processes import same_for_all
from latentia.codecs.quantizers.quantizer import Quantized, Quantizer, straight_through
from latentia.core.arguments import check_count, check_number
from latentia.errors import ConfigError


class EMAVectorQuantizer(Quantizer):
    """z → e_k, k = argmin_j ‖z − e_j‖²; codes follow the encoder by an average instead of a gradient.

    After every training batch, with n_k vectors of sum s_k assigned to code k,

        N_k ← γN_k + (1 − γ)n_k,   m_k ← γm_k + (1 − γ)s_k,   e_k = m_k / N̂_k,   N̂_k = (N_k + ε)/(ΣN + Kε) · ΣN

    (Laplace smoothing; N itself stays unsmoothed, so smoothing does not add up). Only the commitment is a loss:
    β · mean ‖z − sg[e]‖². Gradients pass straight through.

    Codes die when the encoder moves away from them. One with N_k below `revive` of its fair share ΣN/K becomes a random
    vector of the batch, with the fair share as its N and m = N·e, else the next mean would bring the dead code back.

    With `cosine` z and codes lie on the sphere of radius √d (so of unit variance): only the direction of z counts, and
    gradients pass straight through to the normalised z (Yu et al. 2022).

    Statistics are kept in float32, outside autocast. Processes that train side by side (torch.distributed) share them
    and the draws: every one must take part in every training batch.

    Args:
        num_codes: K ≥ 1.
        dim: d ≥ 1.
        beta: β ≥ 0.
        decay: γ in [0, 1), for each batch (each accumulated one too).
        eps: ε > 0 of the smoothing.
        kmeans: iterations of k-means on the first training batch, from which the codes start; 0 starts them at random.
        revive: share of the fair share in [0, 1) below which a code is moved; 0 never moves one.
        cosine: see above.

    Raises `ConfigError` and `InputError` for values out of range.
    """

    options = ("num_codes", "beta", "decay", "eps", "kmeans", "revive", "cosine")

    codes: torch.Tensor
    cluster_size: torch.Tensor
    sums: torch.Tensor
    started: torch.Tensor

    def __init__(
        self,
        num_codes: int,
        dim: int,
        beta: float = 0.25,
        decay: float = 0.99,
        eps: float = 1e-5,
        kmeans: int = 10,
        revive: float = 0.1,
        cosine: bool = False,
    ) -> None:
        super().__init__()
        self.num_codes = check_count("num_codes", num_codes, error=ConfigError)
        self.dim = check_count("dim", dim, error=ConfigError)
        self.kmeans = check_count("kmeans", kmeans, least=0, error=ConfigError)
        self.beta = check_number("beta", beta, low=0)
        self.decay = _below_one("decay", decay)
        self.eps = check_number("eps", eps, low=0, open_low=True)
        self.revive = _below_one("revive", revive)
        self.cosine = cosine
        codes = torch.empty(num_codes, dim)
        if cosine:
            codes = _on_sphere(nn.init.normal_(codes))
        else:
            nn.init.uniform_(codes, -1 / num_codes, 1 / num_codes)
        self.register_buffer("codes", codes)
        self.register_buffer("cluster_size", torch.zeros(num_codes))
        self.register_buffer("sums", torch.zeros(num_codes, dim))
        self.register_buffer("started", torch.zeros((), dtype=torch.bool))

    def forward(self, z: torch.Tensor) -> Quantized:
        """z (B, d, ...) → values of the same shape, tokens (B, ...), loss; part `commitment`."""
        self.check_vectors(z)
        z = self._direction(z)
        rows = z.movedim(1, -1)
        wide = rows.to(torch.promote_types(z.dtype, torch.float32)).contiguous()  # (B, ..., d), as codes are stored
        vectors = wide.detach().view(-1, self.dim)
        learns = self.training and torch.is_grad_enabled() and len(vectors) > 0 and not z.is_meta
        if learns:
            self._start(vectors)
        flat = nearest_codes(vectors, self.codes)
        codes = F.embedding(flat, self.codes).view(wide.shape)
        commitment = F.mse_loss(wide, codes.to(wide.dtype))  # autocast computes it in float32
        if learns:
            self._follow(vectors, flat)
        values = straight_through(z, codes.movedim(-1, 1))
        indices = flat.view(rows.shape[:-1])
        return Quantized(values, indices, self.beta * commitment, {"commitment": commitment.detach()})

    def assign(self, z: torch.Tensor) -> torch.Tensor:
        """z (B, d, ...) → (B, ...), the first of the nearest codes at each position."""
        self.check_vectors(z)
        rows = self._direction(z).movedim(1, -1)
        return nearest_codes(rows.reshape(-1, self.dim), self.codes).view(rows.shape[:-1])

    def embed(self, indices: torch.Tensor) -> torch.Tensor:
        """(B, ...) → their codes (B, d, ...)."""
        self.check_indices(indices)
        return F.embedding(indices, self.codes).movedim(-1, 1).contiguous()

    def _direction(self, z: torch.Tensor) -> torch.Tensor:
        if not self.cosine:
            return z
        with torch.autocast("cpu" if z.is_meta else z.device.type, enabled=False):
            return _on_sphere(z.float() if z.dtype in (torch.float16, torch.bfloat16) else z).to(z.dtype)

    @torch.no_grad()
    def _start(self, vectors: torch.Tensor) -> None:
        """In the first training batch: codes by k-means, statistics as if this batch had been seen before."""
        if bool(self.started):
            return
        self._widen()
        if self.kmeans:
            codes, counts = kmeans(vectors.to(self.codes.dtype), self.num_codes, self.kmeans)
            self.codes.copy_(_on_sphere(codes) if self.cosine else codes)
            self.cluster_size.copy_(counts)
        else:
            same_for_all(self.codes)
            counts, _ = assigned(vectors, nearest_codes(vectors, self.codes), self.num_codes)
            self.cluster_size.fill_(float(counts.sum()) / self.num_codes)
        self.sums.copy_(self.codes * self.cluster_size[:, None])
        self.started.fill_(True)

    @torch.no_grad()
    def _follow(self, vectors: torch.Tensor, indices: torch.Tensor) -> None:
        """Take this batch into the running counts and sums, move the codes, revive the dead."""
        self._widen()
        with torch.autocast(vectors.device.type, enabled=False):
            counts, sums = assigned(vectors.to(self.sums.dtype), indices, self.num_codes)
            self.cluster_size.lerp_(counts, 1 - self.decay)
            self.sums.lerp_(sums, 1 - self.decay)
            if self.revive:
                self._revive(vectors.to(self.sums.dtype))
            total = self.cluster_size.sum()
            smoothed = (self.cluster_size + self.eps) * (total / (total + self.num_codes * self.eps))
            codes = self.sums / smoothed[:, None]
            self.codes.copy_(_on_sphere(codes) if self.cosine else codes)

    def _revive(self, vectors: torch.Tensor) -> None:
        fair = self.cluster_size.sum() / self.num_codes
        dead = self.cluster_size < self.revive * fair
        fresh = draw(vectors, self.num_codes)
        self.sums.copy_(torch.where(dead[:, None], fresh * fair, self.sums))
        self.cluster_size.copy_(torch.where(dead, fair, self.cluster_size))

    def _widen(self) -> None:
        """A half-precision model that is trained keeps its statistics in float32: small steps would be lost."""
        if self.sums.dtype in (torch.float16, torch.bfloat16):
            self.codes, self.sums = self.codes.float(), self.sums.float()
            self.cluster_size = self.cluster_size.float()


def _on_sphere(z: torch.Tensor) -> torch.Tensor:
    """z (N, d, ...) along its direction on dim 1, of length √d; shorter near 0, where half precision needs it."""
    return F.normalize(z, dim=1, eps=1e-3) * z.shape[1] ** 0.5


def _below_one(name: str, value: object) -> float:
    number = check_number(name, value, 0, 1)
    if number == 1:
        raise ConfigError(f"{name} must be below 1, got {value!r}")
    return number
