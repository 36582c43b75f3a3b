from moh_deploy.perf.timing import TimeSamples
from moh_deploy.perf.tune.layers import chosen_over, ranges_pay, slower_than_dense


def times(
    dense: TimeSamples, chosen: TimeSamples, one_choice: TimeSamples
) -> dict[str, TimeSamples]:
    return {"dense": dense, "chosen": chosen, "one_choice": one_choice}


NOISE = (1.0, 1.2) * 10
STEADY = (1.0,) * 20


def test_slower_means_beyond_noise_on_one_set_of_inputs():
    fast, slow = (0.5,) * 20, (1.1,) * 20
    sets = [times(STEADY, fast, fast), times(STEADY, slow, fast), times(NOISE, STEADY, slow)]
    assert slower_than_dense(sets) == [1]
    assert slower_than_dense(sets, "one_choice") == []
    assert {name: item.value for name, item in chosen_over(sets[0]).items()} == {
        "dense": 0.5,
        "one_choice": 1.0,
    }


def test_ranges_pay_where_they_are_faster_or_one_choice_is_slower_than_dense():
    same = times(STEADY, STEADY, STEADY)
    assert not ranges_pay([same, same])
    assert ranges_pay([same, times(STEADY, (0.9,) * 20, STEADY)])
    # Too noisy to beat one choice, which is slower than dense all the same.
    noisy = times(STEADY, (0.9, 1.3) * 10, (1.1,) * 20)
    assert ranges_pay([same, noisy])
