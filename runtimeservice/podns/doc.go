// Package podns makes, pins and enters the kernel namespaces of a pod.
//
// A pod's net, ipc and uts namespaces need no process to live: each is kept
// alive by a bind mount of its file in /proc on a plain file of the pod's
// directory, the pin. The pins of a pod are
//
//	<dir>/net  <dir>/ipc  <dir>/uts  <dir>/user    made by Pin
//	<dir>/pid                                      made by others, taken away by Unpin
//
// and an OCI runtime joins a namespace by the path of its pin.
//
// A user namespace has to be there before the namespaces that it owns, and is
// made by a child process (see [UserNS]).
//
// It is not a network: a namespace that Pin returns has only its loopback
// interface, up. And it is not a registry of pods: the directory is the only
// state.
//
// Invariants:
//
//   - The thread that enters a namespace is thrown away afterwards, so no code
//     of the process ever runs in a pod's namespace by accident. It is never
//     the main thread of the process, which the Go runtime cannot end and
//     which would keep the namespace alive for as long as the process.
//     A child process that was started with Pdeathsig may die with such a
//     thread, if it happens to be the one that started it: do not use both.
//   - Pin leaves either all pins that were asked for or none.
//   - Unpin succeeds on every state of the directory that a crash can leave.
//
// A pin is seen by the mount namespace that it was made in, and by those that
// receive mounts from it. Processes that were cloned into a mount namespace of
// their own while a pin existed (a container being created, a service with a
// private /tmp) hold a copy of it, and a namespace lives until its last copy is
// gone. [Share] therefore makes the parent of the pod directories a shared
// mount, so that taking a pin away reaches the copies too.
package podns
