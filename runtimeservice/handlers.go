package runtimeservice

import (
	"context"
	"fmt"
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go/features"

	"github.com/micarun/mica/runtimeservice/oci"
)

// handler is a RuntimeClass handler with what its OCI runtime can do.
type handler struct {
	*oci.Runtime
	name     string
	features handlerFeatures
}

// handlerFeatures are what an OCI runtime says of itself.
type handlerFeatures struct {
	oci               features.Features
	recursiveReadOnly bool
}

// loadHandlers asks every OCI runtime for its features, once.
func loadHandlers(ctx context.Context, runtimes map[string]*oci.Runtime) (map[string]handler, error) {
	handlers := make(map[string]handler, len(runtimes))
	for name, rt := range runtimes {
		f, err := rt.Features(ctx)
		if err != nil {
			return nil, fmt.Errorf("read features of runtime handler %q: %w", name, err)
		}
		h := handler{Runtime: rt, name: name, features: handlerFeatures{oci: f}}
		h.features.recursiveReadOnly = slices.Contains(f.MountOptions, "rro")
		handlers[name] = h
	}
	return handlers, nil
}
