"""The training program: a folder of labelled images in, published weights out.

data      ImageFolder on disk -> one uint8 tensor in memory
augment   a batch of stored images -> a batch of random training crops
trainer   model, moving average, optimiser and checkpoints
fit       the training loop: resumable, seeded, ends in weights + model card
evaluate  a labelled folder + weights -> accuracy, through the serving code
"""
