"""Records chosen from records: tagged, filtered, selected, split."""
