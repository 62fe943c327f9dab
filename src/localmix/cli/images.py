"""What several commands say of images."""

DATA_HELP = """fashion_mnist (embedded); a folder DIR/train/CLASS/*, DIR/val/CLASS/*; a folder of class
folders; ImageNet as Kaggle packs it; shards; or a data set as timm names it, such as torchvision/cifar10"""
