"""Adaptive layer selection (ALaST), the method and nothing else.

A. Devoto, F. Alvetreti, J. Pomponi, P. Di Lorenzo, P. Minervini, S. Scardapane, "Adaptive Layer Selection for Efficient
Vision Transformer Fine-Tuning", arXiv 2408.08670. The method has four parts, and a module each:

1. importance (`importance`): how far a block moves the class token, the class-token delta;
2. budget (`budgets`): a number per block in [0, 1] that follows the delta;
3. adaptive token selection (`tokens`): a block lets through the share of patches its budget allows, those the class
   token attends to most;
4. adaptive layer freezing (`draw`): each step, K blocks train.

`Controller` holds the little state between steps and serves any training loop. Nothing here knows boards, plans or
memory, and nothing imports torch: tensors are used through their methods, so that a planner can ask `kept_count`
without it.
"""

from edgetune.alast.budgets import kept_count as kept_count
from edgetune.alast.budgets import kept_through as kept_through
from edgetune.alast.budgets import update_budget as update_budget
from edgetune.alast.controller import Controller as Controller
from edgetune.alast.draw import draw_blocks as draw_blocks
from edgetune.alast.importance import token_delta as token_delta
from edgetune.alast.tokens import select_tokens as select_tokens
from edgetune.alast.tokens import top_tokens as top_tokens
