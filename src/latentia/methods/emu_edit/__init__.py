"""Emu Edit (Sheynin et al. 2023): one editor for sixteen tasks, told what to do by words and a task embedding."""
