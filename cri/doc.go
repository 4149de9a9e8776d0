// Package cri is the CRI endpoint of the daemon: a unix socket that serves gRPC (runtime.v1
// RuntimeService and ImageService of k8s.io/cri-api) to the kubelet, crictl or critest, and an HTTP
// server, on loopback by default, for the streams of Exec, Attach and PortForward.
//
// It has no container logic: the [Runtime] and the image service implement the calls. This package
// gives every call a logger, a metric and a gRPC status code, and recovers its panics. It answers
// three calls itself: Exec, Attach and PortForward check that the target exists and return a
// single-use URL of the streaming server.
//
// Invariants:
//
//   - Errors become gRPC codes in errors.go and nowhere else. A call is logged once, here, when it
//     ends; the services return their errors and do not log them.
//   - A request is never logged as a whole, only the names and IDs picked by identify. So neither
//     registry credentials nor a container's environment reach the log.
//   - The socket appears under its name with its final owner and mode. It is removed at the end only
//     if no other process has replaced it.
//   - When the server stops, calls in progress get Options.StopTimeout to end. Event streams and exec
//     sessions, which have no end of their own, are ended at once. Containers keep running.
//
// On disk it has only the socket.
package cri
