"""Solutions as xarray datasets, and their text in notebooks."""

import jax
import numpy as np
import pytest
import xarray as xr

import lintensor_jax as lt

X = np.array([[1.0, 2.0], [0.5, -1.0]])
NETWORK = lt.DiagonalNetwork(np.array([[1.0, 2.0], [0.5, 0.25]]))


@pytest.mark.slow
def test_a_regression_flow(tmp_path):
    flow = lt.gradient_flow(
        NETWORK,
        lt.Regression(X[:1], np.ones(1)),
        saveat=[0.1, 0.2],
        observe=lambda n: {"u": n.weights[0], "sum": n.weights.sum()},
    )
    data = flow.to_xarray()
    assert data.coefficients.dims == data.direction.dims == ("time", "coefficient")
    np.testing.assert_array_equal(data.time, flow.clock_time)
    assert data.sizes["time"] == 3
    for name in ("coefficients", "log_loss", "log_time", "log_norm", "invariant_drift"):
        np.testing.assert_array_equal(data[name], getattr(flow, name))
    assert data.coefficients.attrs["units"] == "y/x"
    assert all(data[name].attrs["description"] for name in data.data_vars)
    assert data.observed_u.shape == (3, 2)
    assert data.observed_sum.dims == ("time",)
    assert data.attrs["status"] == "residual"
    assert data.attrs["network"] == "DiagonalNetwork"
    assert "log_margin" not in data
    data.to_netcdf(tmp_path / "a.nc")
    with xr.open_dataset(tmp_path / "a.nc") as again:
        assert again.identical(data)
    assert data.coefficients.sel(time=0.1).shape == (2,)
    markup = flow._repr_html_()
    assert "<pre" in markup
    assert "residual" in markup


@pytest.mark.slow
def test_a_classification_flow_and_a_matrix():
    flow = lt.gradient_flow(NETWORK, lt.Classification(X, np.array([1.0, -1.0])))
    data = flow.to_xarray()
    np.testing.assert_array_equal(data.log_margin, flow.log_margin)
    np.testing.assert_array_equal(data.log_smoothed_margin, flow.log_smoothed_margin)
    assert "|Theta|" in flow._repr_html_()
    chain = lt.FullyConnectedNetwork((np.eye(2), 0.1 * np.eye(2)))
    matrix = lt.gradient_flow(chain, lt.Regression(X, np.eye(2))).to_xarray()
    assert matrix.coefficients.dims == ("time", "coefficient", "output")


@pytest.mark.slow
def test_many_flows():
    problem = lt.Regression(X[:1], np.ones(1))
    networks = jax.vmap(NETWORK.scaled)(np.array([0.5, 1.0, 1.5]))  # pyright: ignore[reportArgumentType]
    flows = lt.batched_flow(networks, problem)
    data = flows.to_xarray()
    assert data.coefficients.dims == ("lane", "coefficient")
    assert data.status.values.tolist() == ["residual"] * 3
    np.testing.assert_array_equal(data.num_steps, flows.num_steps)
    assert str(flows).startswith("Batch of 3 gradient flows of DiagonalNetwork\n")
    assert "residual 3" in flows._repr_html_()
    mapped = jax.vmap(lambda n: lt.gradient_flow(n, problem))(networks).to_xarray()
    assert mapped.coefficients.dims == ("lane_0", "time", "coefficient")
    assert mapped.reached.shape == mapped.clock_time.shape == (3, 1)
    with pytest.raises(KeyError):
        mapped["log_margin"]


def test_a_descent():
    problem = lt.Regression(X[:1], np.ones(1))
    run = lt.gradient_descent(
        NETWORK, problem, num_steps=20, save_every=10, observe=lambda n: n.weights
    )
    data = run.to_xarray()
    assert data.step.values.tolist() == [0, 10, 20]
    assert data.observed.dims == ("step", "observed_0", "observed_1")
    np.testing.assert_array_equal(data.coefficients, run.coefficients)
    assert "sharpness" not in data
    assert "Descent of DiagonalNetwork" in run._repr_html_()
    both = jax.vmap(lambda n: lt.gradient_descent(n, problem, num_steps=2))(
        jax.vmap(NETWORK.scaled)(np.ones(2))  # pyright: ignore[reportArgumentType]
    )
    with pytest.raises(ValueError, match="of one run"):
        both.to_xarray()
