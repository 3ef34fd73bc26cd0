"""Entry points for `ray job submit`: each module runs one command of crmuons on the cluster."""
