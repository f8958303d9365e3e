"""The truth: an unrewritten definition, evaluated exactly, with its gradient and second order.

Nothing of the compiler is used. A formula becomes nested closures over jets, the hyper-dual numbers a + b e1 + c e2 + d e1 e2
with e1**2 = e2**2 = 0: the gradient moves one cell along e1, a Hessian-vector product moves the inputs along e2 as well. The
parts are Arb balls, which bound their own error, so precision is raised until every result is known far below one ULP.

Three rules hold throughout:

- What cannot be told from zero at the highest precision is zero; a lower precision is given up instead (`Undecided`).
- A part that is None is zero because nothing moves, whatever it is multiplied by; the zero of a computation is a ball.
- Infinities are IEEE's, of the formula as written, and zero has no sign. Where that leaves a derivative NaN although the loss
  is a number, its limit is taken, if it does not depend on how the infinite inputs are approached.
"""

from __future__ import annotations

from .evaluate import exact, select
from .results import Exact, OracleError, Truth, ulp_error

__all__ = ["Exact", "OracleError", "Truth", "exact", "select", "ulp_error"]
