"""Every fault that a run has to survive, and the tests of the gate that hold it.

A test that is renamed, skipped or left to the night shows here, so that no fault loses its last
proof. `make chaos` inflicts the first four some hundreds of times (results/chaos).
"""

import ast
import functools
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
TRAIN, IMAGES = "lab/train/", "lab/data/test_image.py::"
RECORD = f"{TRAIN}test_record.py::"
SWEEP, CHECKPOINT = f"{TRAIN}test_sweep.py::", f"{TRAIN}test_checkpoint.py::"
HOSTILE, HOSTS = "weights/test_hostile.py::", "lab/devices/test_hosts.py::"

# number: what happens -> what has to follow; the tests. `make test` runs every one of them.
FAULTS = {
    1: (
        "killed at any moment, also inside a save -> the same command ends in the same bits",
        "test_end_to_end.py::test_interrupted_and_killed_is_bit_equal_to_undisturbed",
        f"{CHECKPOINT}test_an_interrupted_save_leaves_no_trace",
        f"{SWEEP}test_what_was_done_after_the_last_checkpoint_is_done_again",
    ),
    2: (
        "SIGTERM -> saves the step that it is at, and leaves",
        "test_end_to_end.py::test_interrupted_and_killed_is_bit_equal_to_undisturbed",
        f"{SWEEP}test_a_signal_saves_and_the_same_command_goes_on",
    ),
    3: (
        "one of two hosts is killed -> the other leaves too, and a new start ends in the same bits",
        "test_chaos.py::test_of_two_hosts_one_is_killed_and_the_next_start_ends_in_the_same_bits",
    ),
    4: (
        "a checkpoint is damaged -> an older one that is sound, with one warning; never silence",
        f"{CHECKPOINT}test_damage_is_never_silent",
        f"{SWEEP}test_a_damaged_checkpoint_costs_some_steps_and_one_warning",
    ),
    5: (
        "the disk is full -> one line; earlier steps stay sound",
        f"{SWEEP}test_a_disk_that_fills_up_is_one_line",
        f"{CHECKPOINT}test_a_disk_that_cannot_be_written_is_one_line",
        "test_files.py::test_a_failed_write_leaves_the_old_file_and_nothing_else",
    ),
    6: (
        "a checkpoint of another shape, type or set of keys -> refused with the difference",
        f"{CHECKPOINT}test_a_state_of_another_shape_key_or_type_is_refused",
        f"{CHECKPOINT}test_what_does_not_fit_is_told_as_a_difference",
    ),
    7: (
        "started again on other devices or hosts -> the same bits, the same examples in each step",
        f"{CHECKPOINT}test_another_number_of_devices_restores_the_same_bits",
        "lab/data/test_pipeline.py::test_shards_concatenate_to_the_global_batch",
    ),
    8: (
        "jit, shard_map or pmap, batch norm over the batch or over a device -> the same numbers",
        f"{TRAIN}test_step.py::test_the_launchers_agree",
        "lab/devices/test_sharding.py::test_two_hosts_of_two_devices_train_as_one_of_four",
    ),
    9: (
        "hosts whose configurations differ -> refused before the first step",
        f"{HOSTS}test_hosts_that_differ_are_refused_before_the_first_step",
    ),
    10: (
        "a host that never comes -> a bounded wait, and a line that names who waits",
        f"{HOSTS}test_a_host_that_is_left_alone_says_so",
    ),
    11: (
        "a batch that gives no finite numbers -> skipped whole; many in a row -> stopped",
        f"{TRAIN}test_step.py::test_a_batch_that_is_not_finite_changes_nothing_but_the_counters",
        f"{SWEEP}test_a_run_that_goes_astray_stops_with_one_line",
    ),
    12: (
        "images that are damaged, odd or huge -> masked and counted, or refused",
        f"{IMAGES}test_damaged_images_decode_to_pixels_or_are_bad_records",
        f"{IMAGES}test_cmyk_palette_alpha_and_bilevel",
        f"{IMAGES}test_sixteen_bits_keep_the_high_byte",
        f"{IMAGES}test_one_pixel",
        f"{IMAGES}test_a_picture_that_is_too_large_is_refused_from_its_header",
        f"{TRAIN}test_run.py::test_a_folder_of_images_is_trained_with_a_corrupt_one_masked",
        "lab/data/test_pipeline.py::test_the_budget_stops_a_run_with_the_last_names",
    ),
    13: (
        "a set that batches and devices do not divide -> every example counted once",
        f"{TRAIN}test_run.py::test_evaluation_counts_every_example_once",
        f"{TRAIN}test_run.py::test_sets_of_every_size_are_evaluated_exactly",
    ),
    14: (
        "mistakes in weights, configurations, overrides or data -> one line, and no traceback",
        "test_malformed.py::test_configurations_and_overrides",
        "test_malformed.py::test_data_sets",
        "test_malformed.py::test_saved_models",
        f"{HOSTILE}test_claims_are_checked",
        "weights/test_inspect.py::test_what_is_off_is_named",
    ),
    15: (
        "files made to run code -> refused, and nothing runs",
        f"{HOSTILE}test_pickles_are_not_executed",
        f"{HOSTILE}test_arrays_of_objects_are_not_unpickled",
        f"{HOSTILE}test_keras_files_point_to_no_others",
        f"{HOSTILE}test_members_stay_inside",
    ),
    16: (
        "the last batch of an epoch or evaluation -> nothing is compiled again",
        f"{SWEEP}test_nothing_is_compiled_after_the_first_steps_and_evaluation",
    ),
    17: (
        "many saves -> memory stays flat, and no temporary folder is left",
        f"{CHECKPOINT}test_many_saves_leave_nothing_behind",
    ),
    18: (
        "a checkpoint of an older release -> the same bits",
        f"{CHECKPOINT}test_the_checkpoint_of_an_older_release_restores_bit_equal",
        f"{TRAIN}test_older_runs.py::test_it_goes_on_to_its_golden_losses",
    ),
    19: (
        "a folder that is relative, unusable or of another training -> works, or one line",
        f"{SWEEP}test_a_workdir_that_cannot_be_made_is_refused_before_training",
        f"{SWEEP}test_another_configuration_is_refused_with_what_differs",
    ),
    20: (
        "a checkpoint of another run, variant or seed in its place -> passed over or refused",
        f"{RECORD}test_checkpoints_that_were_exchanged_are_never_gone_on_from",
        f"{RECORD}test_a_checkpoint_of_another_run_is_passed_over",
        f"{RECORD}test_results_that_were_exchanged_are_refused",
    ),
    21: (
        "logs that are damaged, cut or exchanged -> found by `verify`, mended by going on",
        "lab/test_verify.py::test_each_damage_is_found_where_it_is",
        "lab/test_verify.py::test_damaged_events_and_checkpoints",
        f"{RECORD}test_damage_to_a_seed_is_found_and_it_is_finished_again",
        f"{SWEEP}test_damage_to_a_finished_seed_is_mended_from_its_checkpoint",
        f"{SWEEP}test_a_log_line_that_was_cut_is_left_out",
    ),
    22: (
        "a second process in the same folder -> refused at once",
        f"{TRAIN}test_lock.py::test_a_second_process_is_refused_until_the_first_is_gone",
        f"{TRAIN}test_lock.py::test_a_holder_on_another_host_lives_if_its_lock_changes",
    ),
    23: (
        "a signal while evaluating, finishing or writing the result -> remembered",
        f"{SWEEP}test_a_signal_saves_and_the_same_command_goes_on",
        f"{SWEEP}test_a_signal_before_and_after_the_training_is_not_lost",
        f"{SWEEP}test_a_signal_that_something_swallows_stops_before_the_next_seed",
        f"{SWEEP}test_killed_while_the_result_is_written",
    ),
    24: (
        "a pipe, device, loop of links or bomb in place of a file -> one line, in bounded memory",
        "test_files.py::test_what_is_not_a_small_file_is_refused",
        f"{HOSTILE}test_what_is_no_file",
        f"{HOSTILE}test_bombs_do_not_go_off",
    ),
    25: ("classes that differ in name, order or presence -> matched by name or refused",),
    26: (
        "a misspelt key or a value of another type in an experiment -> refused before any reading",
        f"{TRAIN}test_config.py::test_a_misspelt_key_in_a_file_is_refused_where_it_stands",
        f"{TRAIN}test_check.py::test_values_of_another_type_are_refused",
    ),
    27: ("images that came or went between two starts -> refused with the difference",),
}
OPEN = {25, 27}  # not held yet


@functools.cache
def functions(name):
    tree = ast.parse((TESTS / name).read_text())
    found = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    marks = [n for n in tree.body if isinstance(n, ast.Assign) and "pytestmark" in ast.unparse(n)]
    return found, " ".join(map(ast.unparse, marks))


@pytest.mark.parametrize(
    ("number", "test"), [(n, test) for n, (_, *tests) in FAULTS.items() for test in tests]
)
def test_every_fault_is_held_by_tests_of_the_gate(number, test):
    name, _, function = test.partition("::")
    found, marks = functions(name)
    assert function in found, f"fault {number}: {FAULTS[number][0]}"
    # A case that runs at night is only one of those in `parametrize`.
    decorators = [ast.unparse(d) for d in found[function].decorator_list]
    marks += " ".join(d for d in decorators if ".parametrize(" not in d)
    assert not re.search("nightly|oracle|skip", marks), marks
    assert not re.search(r"skip\(", ast.unparse(found[function].body))


def test_no_fault_is_left_out():
    assert list(FAULTS) == list(range(1, 28))
    assert {number for number, (_, *tests) in FAULTS.items() if not tests} == OPEN
