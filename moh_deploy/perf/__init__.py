"""How fast packages run: timing, a cost model, what `tune` and `bench` measure."""
