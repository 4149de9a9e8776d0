// Package lookup reads from the node what package spec needs to specify a container: properties of
// the host ([DetectHost]), users and groups of a root file system ([ResolveUser]), sources of
// mounts ([PrepareMounts]), device nodes ([ResolveDevices]), seccomp files, and SELinux and
// AppArmor labels and profiles. Package spec itself does no I/O.
//
// # Trust
//
// Root file systems and their user files come from images. They are opened without leaving the root
// and without blocking on a FIFO, and their size and the number of groups are limited. Reading
// costs time proportional to the size of the file.
//
// Functions change the node only where their comment says so: PrepareMounts makes missing host
// paths, Relabel sets SELinux labels, and LoadAppArmor and EnsureAppArmor load a profile. All
// functions may be called concurrently. Requests that violate CRI's rules are ErrInvalidArgument,
// those that this node cannot fulfil ErrFailedPrecondition.
package lookup
