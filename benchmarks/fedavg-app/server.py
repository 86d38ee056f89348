"""FedAvg of Flower, over one array of so many bytes."""

import numpy as np
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    phones, settings = int(context.run_config["phones"]), context.run_config
    strategy = FedAvg(
        fraction_train=1.0,
        fraction_evaluate=0.0,
        min_train_nodes=phones,
        min_evaluate_nodes=0,
        min_available_nodes=phones,
    )
    array = np.zeros(max(1, int(settings["bytes"]) // 4), np.float32)
    strategy.start(grid, ArrayRecord([array]), num_rounds=int(settings["rounds"]))
