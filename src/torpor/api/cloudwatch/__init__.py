"""CloudWatch Logs as far as reading lines needs it: JSON 1.1, one URL, the operation in a header.

The shapes come from botocore's model, as those of the other services do; `operations` has the functions.
"""

from torpor.api.cloudwatch.door import answer as answer
from torpor.api.cloudwatch.door import answer_to as answer_to
from torpor.api.cloudwatch.door import operation_of as operation_of
from torpor.api.cloudwatch.door import read as read
