// Package checkpoint has what checkpoints and restores of containers need apart from the
// containers: the archive format of podman, CRI-O, containerd and checkpointctl, the check of the
// CRIU program, the check that a checkpointed process fits into a new container, and waiting for
// CRIU to end.
//
// The package does not checkpoint or restore. The OCI runtime runs CRIU; package runtimeservice
// decides for which container and when. Functions may be called concurrently.
//
// # Archive
//
// A tar, written here without compression, of
//
//	config.dump            description of the checkpoint: container, image, OCI runtime
//	spec.dump              the container's OCI specification
//	status, status.dump    times, and the CRI status, as in containerd's archives
//	checkpoint/            CRIU's image files
//	rootfs-diff.tar        files that the container has changed
//	deleted.files          JSON list of files that it has deleted; absent if none
//	volumes/<n>.tar        the volumes that the image declares, in order of their paths
//	devshm-checkpoint.tar  the pod's /dev/shm; absent if empty
//	container.log          the CRI log so far
//	dump.log, stats-dump   CRIU's log and statistics of the dump
//
// Archives of other engines may lack some of these files. Unknown files are ignored. The archives
// and their rootfs-diff.tar may be compressed with gzip or zstd. A pod's checkpoint is a directory:
// pod.options names an archive of the above form for each container, and pod.dump holds the pod's
// configuration.
//
// # Trust
//
// From the image files, CRIU restores processes with all their privileges, and mounts what the
// files name. Reading an archive is safe for any content: nothing is written outside of the target
// directory, and no more than the limit inside. Restoring from an archive requires the same trust
// in its author as in root.
package checkpoint
