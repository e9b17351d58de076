"""Attention replaced by less: the smallest module that still retrieves.

Modules:
    shapes: what a module holds and multiplies, counted
    factors: best narrow factors
    rounding: few bits
    acting: the hook functions
    reductions: what stands in attention's place, as values that give edits
    answering: answers through the engine
    tuning: a fine-tune of attention alone
    figure: the curve as a figure
    results: the curve as a typed result
    report: the page
    experiment: all of it, module by module
"""
