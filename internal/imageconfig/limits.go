package imageconfig

import "github.com/micarun/mica/internal/jsonlimit"

const (
	// MaxSize is the maximum size of a configuration in bytes. It has room for a configuration that
	// exposes every port of TCP and UDP: some 1.9 MB.
	MaxSize = 2 << 20
	// MaxForeignSize is the maximum size in bytes of a configuration of another engine for DiffIDs.
	MaxForeignSize = 32 << 20
	// MaxLayers is the maximum number of layers of an image. overlayfs accepts 500 lower
	// directories.
	MaxLayers = 500
)

const (
	maxEntries    = 4096 // of a list without a limit of its own: variables, arguments, labels, history
	maxPorts      = 1 << 17
	maxVolumes    = 1024
	maxUserLength = 1024 // bytes of the user and group that a process runs as

	maxNesting = 32 // of arrays and objects; the deepest of the specifications is 5
	maxValues  = 2*maxPorts + 1<<16
	// maxForeignNesting is the nesting limit of encoding/json, so that no engine can have a deeper
	// configuration.
	maxForeignNesting = 10000
)

func limits() jsonlimit.Limits {
	list := jsonlimit.Shape{Max: maxEntries}
	return jsonlimit.Limits{Depth: maxNesting, Values: maxValues, Shape: jsonlimit.Shape{
		Distinct: true,
		Members: map[string]jsonlimit.Shape{
			"os": {}, "architecture": {}, "variant": {}, "created": {},
			"os.features": list,
			"history":     list,
			"rootfs":      {Distinct: true, Members: map[string]jsonlimit.Shape{"type": {}, "diff_ids": {Max: MaxLayers}}},
			"config": {Distinct: true, Members: map[string]jsonlimit.Shape{
				"User": {}, "WorkingDir": {}, "StopSignal": {}, "Env": list, "Entrypoint": list, "Cmd": list, "Shell": list, "OnBuild": list, "Labels": list,
				"Volumes": {Max: maxVolumes}, "ExposedPorts": {Max: maxPorts},
			}},
		},
	}}
}

// diffIDLimits are the limits for the list of layers.
func diffIDLimits() jsonlimit.Limits {
	ids := map[string]jsonlimit.Shape{"diff_ids": {Max: MaxLayers}}
	return jsonlimit.Limits{Depth: maxForeignNesting, Values: MaxForeignSize, Shape: jsonlimit.Shape{
		Members: map[string]jsonlimit.Shape{"rootfs": {Members: ids}},
	}}
}
