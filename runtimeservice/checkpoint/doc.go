// Package checkpoint is the form of a container's checkpoint outside of a
// running node: the archive that podman, CRI-O, containerd and checkpointctl
// read and write, and the CRIU program that makes what is in it.
//
// It does not checkpoint or restore anything itself. The OCI runtime runs CRIU;
// package runtimeservice says of which container and when.
//
// # Archive
//
// A tar, uncompressed as written here, of
//
//	config.dump            what was checkpointed: container, image, OCI runtime
//	spec.dump              the OCI specification that it ran by
//	status, status.dump    times, and the status in the CRI's form, as containerd has them
//	checkpoint/            CRIU's image files
//	rootfs-diff.tar        what the container has changed of its image
//	deleted.files          JSON list of what it has deleted; absent if nothing
//	volumes/<n>.tar        the volumes that the image declares, in order of their paths
//	devshm-checkpoint.tar  the pod's /dev/shm; absent if empty
//	container.log          the CRI log so far
//	dump.log, stats-dump   what CRIU said of the dump
//
// Archives of other engines lack some of these or have others, which are left
// alone; they may be compressed by gzip or zstd, as may their rootfs-diff.tar.
// The archive of a pod is a directory: pod.options names an archive of the form
// above for each container, and pod.dump has the pod's configuration.
//
// # Trust
//
// CRIU rebuilds processes with all their privileges from the image files, and
// mounts what these name. Reading an archive is safe whatever it holds (nothing
// outside of the target directory is written, and no more than was allowed);
// restoring from it trusts whoever wrote it like root.
package checkpoint
