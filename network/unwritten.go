package network

import "github.com/containerd/errdefs"

var errUnwritten = errdefs.ErrNotImplemented
