package checkpoint

import (
	metadata "github.com/checkpoint-restore/checkpointctl/lib"
)

// Names in an archive, in addition to those of checkpointctl's library.
const (
	// LogFile is the CRI log, under containerd's name.
	LogFile = "container.log"
	// crioLogFile is the CRI log, under CRI-O's name.
	crioLogFile = "io.kubernetes.cri-o.LogPath"
	// descriptorsFile, in the directory of CRIU's images, is where OCI runtimes describe the
	// standard streams.
	descriptorsFile = "descriptors.json"
)

// Config, PodOptions and Status are the contents of config.dump, pod.options and status.
type (
	Config     = metadata.ContainerConfig
	PodOptions = metadata.CheckpointedPodOptions
	Status     = metadata.ContainerdStatus
)

// Names of files and directories in an archive.
const (
	ConfigFile     = metadata.ConfigDumpFile
	SpecFile       = metadata.SpecDumpFile
	StatusFile     = metadata.StatusFile
	StatusDumpFile = metadata.StatusDumpFile
	ImagesDir      = metadata.CheckpointDirectory
	VolumesDir     = metadata.CheckpointVolumesDirectory
	RootfsDiffFile = metadata.RootFsDiffTar
	DeletedFile    = metadata.DeletedFilesFile
	ShmFile        = metadata.DevShmCheckpointTar
	DumpLog        = metadata.DumpLogFile
	RestoreLog     = metadata.RestoreLogFile
	PodOptionsFile = metadata.PodOptionsFile
	PodDumpFile    = metadata.PodDumpFile
)

// PodVersion is the format version of a pod's checkpoint.
const PodVersion = 1
