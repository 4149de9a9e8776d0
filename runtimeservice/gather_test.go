package runtimeservice

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/micarun/mica/runtimeservice/state"
)

func TestGather(t *testing.T) {
	var items []*Container
	for i := range 20 {
		items = append(items, recordedContainer(t, t.TempDir(), state.ContainerRecord{ID: fmt.Sprint(i)}, state.ContainerState{}))
	}
	read := func(_ context.Context, c *Container) (string, error) {
		switch c.ID() {
		case "3":
			return "", fmt.Errorf("ended: %w", errdefs.ErrNotFound)
		case "7":
			return "", errors.New("unreadable")
		}
		return c.ID(), nil
	}
	got, err := gather(t.Context(), items, read)
	want := []string{"0", "1", "2", "4", "5", "6", "8", "9", "10", "11", "12", "13", "14", "15", "16", "17", "18", "19"}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("gather = %v, %v, want %v", got, err, want)
	}

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if got, err := gather(ctx, items, read); !errors.Is(err, context.Canceled) {
		t.Errorf("gather after the caller's end = %v, %v", got, err)
	}
}
