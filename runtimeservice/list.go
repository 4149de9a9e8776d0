package runtimeservice

import (
	"iter"
	"slices"
	"strings"

	"github.com/micarun/mica/runtimeservice/state"
)

// filterContainers yields the created containers that match the prefixes of their ID and their
// pod's ID, and the labels.
func (s *Service) filterContainers(id, podID string, labels map[string]string) iter.Seq[*Container] {
	return func(yield func(*Container) bool) {
		for _, c := range s.containers.All() {
			if c.Phase() == state.Creating || !strings.HasPrefix(c.ID(), id) || !strings.HasPrefix(c.PodID(), podID) || !hasLabels(c.Config().GetLabels(), labels) {
				continue
			}
			if !yield(c) {
				return
			}
		}
	}
}

func hasLabels(labels, want map[string]string) bool {
	for k, v := range want {
		if got, ok := labels[k]; !ok || got != v {
			return false
		}
	}
	return true
}

// containersOf returns all containers of a pod, also those that are being created, oldest first.
func (s *Service) containersOf(podID string) []*Container {
	var of []*Container
	for _, c := range s.containers.All() {
		if c.PodID() == podID {
			of = append(of, c)
		}
	}
	slices.SortFunc(of, func(a, b *Container) int { return a.Record().Created.Compare(b.Record().Created) })
	return of
}

// containersByPod returns the containers of every pod, oldest first. For all pods that is cheaper
// than containersOf for each.
func (s *Service) containersByPod() map[string][]*Container {
	of := map[string][]*Container{}
	for _, c := range s.containers.All() {
		of[c.PodID()] = append(of[c.PodID()], c)
	}
	for _, containers := range of {
		slices.SortFunc(containers, func(a, b *Container) int { return a.Record().Created.Compare(b.Record().Created) })
	}
	return of
}
