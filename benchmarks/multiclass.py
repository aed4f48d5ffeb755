"""Random multi-class flows to their certified limit directions, and one layer against an SVM.

Run from the repository root:

    python benchmarks/multiclass.py [--problems 5] [--classes 2 3] [--out F.json]

Each cell (2 to 6 classes; fully connected or diagonal, L = 2 or 3) has `--problems` random
separable problems with d = 5, n = 12, from Gaussian parameters. With 5 problems a cell there are
100 problems. Results of cells that are not run again are kept in the file. Claims:

* every flow reaches margin 1e5;
* the smoothed margin never drops by more than 1e-9 (of its logarithm) from one saved step to the
  next;
* `limit_direction` certifies a KKT point for at least 98 %;
* one linear layer, followed to margin 1e8, has the direction of an independent Crammer-Singer
  hard-margin SVM (SLSQP) to 1e-6, and `predict` has it to 1e-7.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import diffrax
import jax
import numpy as np
import scipy.optimize

jax.config.update("jax_enable_x64", True)

import jax.numpy as jnp  # noqa: E402

import lintensor_jax as lt  # noqa: E402
from lintensor_jax.dynamics.statuses import status_name  # noqa: E402
from lintensor_jax.initialization import gaussian  # noqa: E402

D, N = 5, 12
MARGIN, DROP, LEAST_CERTIFIED = 1e5, 1e-9, 0.98
OF_FLOW, OF_PREDICTION = 1e-6, 1e-7

NETWORKS = {
    "fully-connected, L = 2": lambda m: lt.FullyConnectedNetwork.zeros((D, D), m),
    "fully-connected, L = 3": lambda m: lt.FullyConnectedNetwork.zeros((D, D, D), m),
    "diagonal, L = 2": lambda m: lt.DiagonalNetwork.zeros(2, D, m),
    "diagonal, L = 3": lambda m: lt.DiagonalNetwork.zeros(3, D, m),
}


def random_problem(classes: int, index: int) -> lt.MulticlassClassification:
    """Separable data with all classes: the labels are those of a random linear classifier."""
    rng = np.random.default_rng([classes, index])
    while True:
        X = rng.normal(size=(N, D))
        labels = np.argmax(X @ rng.normal(size=(D, classes)), axis=1)
        if len(np.unique(labels)) == classes:
            return lt.MulticlassClassification(X, labels)


def crammer_singer(problem: lt.MulticlassClassification) -> np.ndarray:
    """The unit direction of min |B|^2 subject to m_ic >= 1, by SLSQP."""
    X, labels = np.asarray(problem.X), np.asarray(problem.labels)
    m = problem.num_classes
    rows = []
    for x, label in zip(X, labels, strict=True):
        for other in set(range(m)) - {int(label)}:
            row = np.zeros((D, m))
            row[:, label], row[:, other] = x, -x
            rows.append(row.ravel())
    rows = np.stack(rows)
    feasible = scipy.optimize.linprog(
        np.zeros(rows.shape[1]), A_ub=-rows, b_ub=-np.ones(len(rows)), bounds=(None, None)
    ).x
    found = scipy.optimize.minimize(
        lambda b: b @ b / 2,
        feasible,
        jac=lambda b: b,
        constraints={"type": "ineq", "fun": lambda b: rows @ b - 1, "jac": lambda b: rows},
        method="SLSQP",
        options={"ftol": 1e-16, "maxiter": 1000},
    )
    return found.x.reshape(D, m) / np.linalg.norm(found.x)


def run_cell(name: str, classes: int, problems: int) -> dict[str, Any]:
    """Flows of one architecture with that many classes, and their limits."""
    rows = []
    for index in range(problems):
        problem = random_problem(classes, index)
        start = gaussian(NETWORKS[name](classes), jax.random.key(index), 0.5)
        flow = lt.gradient_flow(
            start,
            problem,
            stop=lt.StopAtMargin(MARGIN),
            rtol=1e-6,
            saveat=diffrax.SaveAt(steps=True),
            throw=False,
        )
        row: dict[str, Any] = {
            "index": index,
            "status": status_name(flow.status),
            "steps": int(flow.stats["num_steps"]),
            "log_margin": float(jnp.asarray(flow.log_margin)[-1]),
            "drop": float(jnp.asarray(flow.smoothed_margin_drop)),
        }
        if status_name(flow.status) == "margin":
            limit = lt.limit_direction(flow, problem)
            row["limit"] = str(limit.status)
            row["reason"] = limit.reason
            row["parameter_residual"] = limit.certificate.parameter_residual
            row["predictor_residual"] = limit.certificate.predictor_residual
        rows.append(row)
    return {"cell": name, "classes": classes, "rows": rows}


def run_one_layer(classes: int, problems: int) -> dict[str, Any]:
    """Flows of one layer to margin 1e8, and their distances from the SVM."""
    rows = []
    for index in range(problems):
        problem = random_problem(classes, index)
        start = gaussian(lt.LinearNetwork.zeros(D, classes), jax.random.key(index), 0.5)
        flow = lt.gradient_flow(start, problem, throw=False)
        svm, predicted = crammer_singer(problem), lt.predict(start, problem).limit
        rows.append(
            {
                "index": index,
                "status": status_name(flow.status),
                "log_margin": float(jnp.asarray(flow.log_margin)[-1]),
                "flow": float(np.linalg.norm(np.asarray(flow.direction[-1]) - svm)),
                "predicted": float(np.linalg.norm(np.asarray(predicted) - svm)),
            }
        )
    return {"cell": "one layer", "classes": classes, "rows": rows}


def failed_claims(cells: list[dict[str, Any]]) -> list[str]:
    """The claims that do not hold."""
    deep = [row for cell in cells if cell["cell"] != "one layer" for row in cell["rows"]]
    one = [row for cell in cells if cell["cell"] == "one layer" for row in cell["rows"]]
    failed = []
    if not all(row["status"] == "margin" for row in deep):
        failed.append(f"every flow reaches margin {MARGIN:g}")
    if not all(row["drop"] <= DROP for row in deep):
        failed.append("the smoothed margin never drops")
    certified = [row.get("limit") in ("stationary", "continued") for row in deep]
    if deep and not np.mean(certified) >= LEAST_CERTIFIED:
        failed.append(f"{LEAST_CERTIFIED:.0%} of the limits are certified")
    if not all(row["flow"] <= OF_FLOW and row["predicted"] <= OF_PREDICTION for row in one):
        failed.append("one layer tends to the Crammer-Singer SVM")
    return failed


def main() -> int:
    """Run the cells, print a table, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problems", type=int, default=5)
    parser.add_argument("--classes", type=int, nargs="+", default=[2, 3, 4, 5, 6])
    parser.add_argument("--cells", nargs="+", default=[*NETWORKS, "one layer"])
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    found: dict[tuple[str, int], dict[str, Any]] = {}
    if arguments.out and arguments.out.exists():
        kept = json.loads(arguments.out.read_text())["cells"]
        found = {(cell["cell"], cell["classes"]): cell for cell in kept}
    for classes in arguments.classes:
        for name in arguments.cells:
            one = name == "one layer"
            count = arguments.problems
            cell = run_one_layer(classes, count) if one else run_cell(name, classes, count)
            found[name, classes] = cell
            print(f"{name}, {classes} classes", *cell["rows"], sep="\n  ", flush=True)
            if arguments.out:
                cells = [found[key] for key in sorted(found)]
                arguments.out.write_text(json.dumps({"cells": cells}, indent=1) + "\n")
    failed = failed_claims(list(found.values()))
    rows = sum(len(cell["rows"]) for cell in found.values())
    print(f"{rows} problems; claims that fail: {failed or 'none'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
