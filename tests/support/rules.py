"""The rules of other papers that need no argument and keep no state, for the tests to which all rules are held."""

from collections.abc import Callable, Mapping

from paretrain import (
    DBMTL,
    IMTLG,
    NTKMTL,
    AlignedMTL,
    CAGrad,
    ConFIG,
    FairGrad,
    GeometricMean,
    Nash,
    ScaleInvariant,
    SmoothChebyshev,
    SoftOptimalUncertainty,
    UPGrad,
    Weighting,
)

OF_PAPERS: Mapping[str, Callable[[], Weighting]] = {
    "nash": Nash,
    "fairgrad": FairGrad,
    "imtl_g": IMTLG,
    "config": ConFIG,
    "aligned": AlignedMTL,
    "cagrad": CAGrad,
    "upgrad": UPGrad,
    "stch": SmoothChebyshev,
    "si": ScaleInvariant,
    "gls": GeometricMean,
    "uw_so": SoftOptimalUncertainty,
    "db_mtl": DBMTL,
    "ntkmtl": NTKMTL,
}
