// Package imageconfig decodes image configurations that registries and other engines supply.
//
// The author of an image decides the size and shape of its configuration. Parse and ParseSummary
// therefore check a configuration against limits before they decode it. Images in use are one to
// three orders of magnitude below the limits. DiffIDs reads only the list of layers, also of a
// configuration that exceeds the limits, so that the layers of an image of another engine can be
// kept.
//
// All functions may be called concurrently.
package imageconfig
