// Package cri is the CRI endpoint of the daemon: one unix socket on which a
// kubelet, crictl or critest speaks gRPC (runtime.v1 RuntimeService and
// ImageService of k8s.io/cri-api), and one loopback HTTP server on which the
// streams of Exec, Attach and PortForward run.
//
// It is plumbing only. What a call means is decided by the [Runtime] and the
// image service behind it; this package gives every call a logger, a metric, a
// recovered panic and a gRPC status code, and answers three calls itself: Exec,
// Attach and PortForward, which check that the target exists and return a
// single-use URL of the streaming server.
//
// Invariants:
//
//   - Errors become codes in errors.go and nowhere else. A call is logged once,
//     here, when it ends; the services behind return their errors and do not log them.
//   - A request is never logged as a whole: only the names and IDs picked by
//     identify, so neither registry credentials nor a container's environment
//     reach the log.
//   - The socket appears under its name with its final owner and mode, and is
//     removed on the way out only if it is still ours.
//   - When the server stops, calls in progress get Options.StopTimeout to end;
//     event streams and exec sessions, which have no end of their own, are told to
//     end at once. Containers are none of its business.
//
// It keeps nothing on disk but the socket.
package cri
