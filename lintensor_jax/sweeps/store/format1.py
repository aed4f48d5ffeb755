"""The names in stores of format 1: the module of each public class and function at that time.

Format 1 wrote the path of a module, such as `lintensor_jax.dynamics.stopping:StopAtMargin`. Later
formats write public names, so that this table will not grow. In a store of format 1, names that are
not in the table are refused.
"""

#: {public module: {module in format 1: names}}.
_MODULES = {
    "lintensor_jax.sweeps": {
        "lintensor_jax.sweeps.drawing": "figures write_figures",
        "lintensor_jax.sweeps.errors": "SweepError",
        "lintensor_jax.sweeps.grid": "Axis Grid Point Zip",
        "lintensor_jax.sweeps.observables": (
            "AbstractObservable Direction DistanceToPrediction Drift Ending Imbalance "
            "LayerAlignment Limit LogLoss Margins Measured Trajectory Variable"
        ),
        "lintensor_jax.sweeps.plan": "Options Plan",
        "lintensor_jax.sweeps.recipes": "RandomData Start",
        "lintensor_jax.sweeps.report": "write_report",
        "lintensor_jax.sweeps.run": "resume sweep",
        "lintensor_jax.sweeps.schedule": "Progress",
        "lintensor_jax.sweeps.state": "Status status",
    },
    "lintensor_jax.initialization": {
        "lintensor_jax.initialization": "balanced gaussian identity matching zero_last_layer",
        "lintensor_jax.initialization_imbalance": (
            "balanced_on_data imbalanced invariant lambda_balanced spectral width_scaled"
        ),
    },
    "lintensor_jax.theory": {
        "lintensor_jax.theory.alignment": (
            "Alignment AlignmentBounds alignment alignment_bounds alignment_constant "
            "learning_conditions smoothness"
        ),
        "lintensor_jax.theory.assumptions": "Assumption",
        "lintensor_jax.theory.certificates": "Certificate certify",
        "lintensor_jax.theory.finite_loss": (
            "FiniteLossDirection direction_at_loss finite_loss_path interpolated_max_margin"
        ),
        "lintensor_jax.theory.induced": "induced_regularizer minimal_network",
        "lintensor_jax.theory.interpolation": (
            "InterpolationLimit commuting_sensing_limit diagonal_limit even_convolution_limit "
            "large_scale_weights limit_point small_scale_weights"
        ),
        "lintensor_jax.theory.landscape": (
            "LandscapePoint PointKind hessian landscape_point least_loss"
        ),
        "lintensor_jax.theory.margins": (
            "MaxMargin NonSeparableError Separability is_separable max_margin"
        ),
        "lintensor_jax.theory.min_norm": "InconsistentEquationsError MinNorm min_norm",
        "lintensor_jax.theory.mirror_limits": (
            "bregman_projection differential_limit two_layer_diagonal_limit two_layer_limit"
        ),
        "lintensor_jax.theory.neuron": "NeuronLimit single_neuron_limit",
        "lintensor_jax.theory.norms": (
            "FourierL1Norm FourierLpNorm L1Norm L21Norm L2Norm LpNorm NuclearNorm WeightedL2Norm"
        ),
        "lintensor_jax.theory.predict": "predict",
        "lintensor_jax.theory.prediction": "ExponentialDecay HarmonicDecay Prediction",
        "lintensor_jax.theory.predictor_space": "Regularizer",
        "lintensor_jax.theory.rates": (
            "ConvergenceRateBound Imbalance convergence_rate_bound imbalance"
        ),
        "lintensor_jax.theory.rates_bounds": (
            "Bound deviation_bound distance_from_invariant_set rate_bounds resting_part "
            "yun_rate_bound"
        ),
        "lintensor_jax.theory.rates_width": "lemma_11 theorem_12",
        "lintensor_jax.theory.regression": "TwoLayerLimit limit_point_two_layer",
        "lintensor_jax.theory.riccati": "RiccatiTrajectory riccati_trajectory",
        "lintensor_jax.theory.singular_vectors": (
            "SingularVectors remaining_variation residual_direction singular_vector_residual "
            "singular_vectors"
        ),
        "lintensor_jax.theory.stable_sets": (
            "ConvergenceBound RankOneTarget StableSet convergence_bound nearby_rates "
            "rank_one_target stable_set"
        ),
    },
    "lintensor_jax": {
        "lintensor_jax.conserved": "conserved_quantities",
        "lintensor_jax.dynamics.batched": "batched_flow",
        "lintensor_jax.dynamics.clocks": "AbstractClock LogArcLength LossTime PhysicalTime",
        "lintensor_jax.dynamics.compilation": "AbstractCompilation Native XLA",
        "lintensor_jax.dynamics.descent": "DescentSolution gradient_descent",
        "lintensor_jax.dynamics.finish": "GaussNewton",
        "lintensor_jax.dynamics.flow": "gradient_flow",
        "lintensor_jax.dynamics.induced": "induced_flow",
        "lintensor_jax.dynamics.mirror": "mirror_flow",
        "lintensor_jax.dynamics.smoothness_steps": "smoothness_steps",
        "lintensor_jax.dynamics.solution": "FlowError FlowSolution",
        "lintensor_jax.dynamics.stopping": (
            "AbstractStop FlowStatus StopAtLoss StopAtMargin StopAtResidual StopAtTime"
        ),
        "lintensor_jax.limits": "LimitDirection LimitStatus limit_direction",
        "lintensor_jax.losses": "AbstractMarginLoss ExponentialLoss LogisticLoss",
        "lintensor_jax.networks.base": "AbstractNetwork constant",
        "lintensor_jax.networks.convolutional": "ConvolutionalNetwork",
        "lintensor_jax.networks.decomposition": (
            "AssumptionFails OrthogonalDecomposition decompose_tensor dense_tensor"
        ),
        "lintensor_jax.networks.diagonal": "DiagonalNetwork",
        "lintensor_jax.networks.differential": "DifferentialDiagonalNetwork",
        "lintensor_jax.networks.factorization": (
            "MatrixFactorizationNetwork SensingDecomposition sensing_decomposition"
        ),
        "lintensor_jax.networks.fully_connected": "FullyConnectedNetwork",
        "lintensor_jax.networks.orthogonal": "OrthogonalNetwork",
        "lintensor_jax.networks.tensor": "TensorNetwork",
        "lintensor_jax.problems": (
            "AbstractProblem AbstractSquaredProblem Classification MatrixSensing Regression"
        ),
    },
    "diffrax": {
        "diffrax._solver.bosh3": "Bosh3",
        "diffrax._solver.dopri5": "Dopri5",
        "diffrax._solver.dopri8": "Dopri8",
        "diffrax._solver.heun": "Heun",
        "diffrax._solver.midpoint": "Midpoint",
        "diffrax._solver.ralston": "Ralston",
        "diffrax._solver.runge_kutta": "AbstractERK",
        "diffrax._solver.tsit5": "Tsit5",
    },
}

#: {name in format 1: public name}.
PUBLIC = {
    f"{module}:{name}": f"{public}:{name}"
    for public, modules in _MODULES.items()
    for module, names in modules.items()
    for name in names.split()
}
#: {public name: name in format 1}.
FORMER = {public: former for former, public in PUBLIC.items()}
