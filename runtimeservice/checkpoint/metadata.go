package checkpoint

import (
	metadata "github.com/checkpoint-restore/checkpointctl/lib"
)

// Names in an archive, beside those of checkpointctl's library.
const (
	// LogFile is the CRI log, as containerd calls it.
	LogFile = "container.log"
	// StatsFile is what CRIU counted.
	StatsFile = "stats-dump"
	// crioLogFile is the CRI log, as CRI-O calls it.
	crioLogFile = "io.kubernetes.cri-o.LogPath"
	// descriptorsFile, in the directory of CRIU's images, is where OCI runtimes
	// say what the standard streams were.
	descriptorsFile = "descriptors.json"
)

// ImageAnnotation is the annotation of a manifest that makes its image the
// checkpoint of a container.
const ImageAnnotation = metadata.CheckpointAnnotationName

// Config, PodOptions and Status are what archives say in config.dump,
// pod.options and status.
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

// PodVersion is the version of the pod's form.
const PodVersion = 1
