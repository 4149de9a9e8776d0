package runtimeservice

import (
	"context"
	"fmt"
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go/features"

	"github.com/micarun/mica/runtimeservice/oci"
)

// handler is a RuntimeClass handler with the features of its OCI runtime.
type handler struct {
	*oci.Runtime
	name     string
	features handlerFeatures
}

// handlerFeatures are the features that an OCI runtime reports.
type handlerFeatures struct {
	oci               features.Features
	recursiveReadOnly bool
	// shallowBinds is set if recursive bind mounts in a user namespace do not include submounts.
	shallowBinds bool
}

// loadHandlers asks each OCI runtime for its features. It asks once, because the default runtime
// has two names.
func loadHandlers(ctx context.Context, runtimes map[string]*oci.Runtime) (map[string]handler, error) {
	handlers := make(map[string]handler, len(runtimes))
	known := map[*oci.Runtime]handlerFeatures{}
	for name, rt := range runtimes {
		f, ok := known[rt]
		if !ok {
			said, err := rt.Features(ctx)
			if err != nil {
				return nil, fmt.Errorf("read features of runtime handler %q: %w", name, err)
			}
			f = handlerFeatures{
				oci:               said,
				recursiveReadOnly: slices.Contains(said.MountOptions, "rro"),
				shallowBinds:      said.Annotations[oci.ShallowBinds] != "",
			}
			known[rt] = f
		}
		handlers[name] = handler{Runtime: rt, name: name, features: f}
	}
	return handlers, nil
}
