"""How MBPP+ answers are run and judged: `runner` and `codec` go into the box, the rest stays outside."""
