package registry

import (
	"context"
	"fmt"
	"net/http"
	"strings"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	// maxForeignURLs is the number of URLs of a layer that are tried. Only Windows base images have
	// any, and they have one.
	maxForeignURLs = 4
	// maxForeignURL is the maximum length of a URL in bytes. A signed URL has about 1 KiB.
	maxForeignURL = 4 << 10
)

// foreign gets the layer from the URLs in its manifest after the registry has failed with err. It
// skips URLs beyond the limits. A URL that cannot be requested counts as failed.
func (d *download) foreign(ctx context.Context, err error) error {
	hosts := d.repository.hosts
	for _, u := range foreignURLs(d.want) {
		o := foreignOpener(hosts[len(hosts)-1], u)
		failure := d.repository.retry(ctx, mirrorAttempts, func() error { return d.resume(ctx, o) }, d.progressed)
		if failure == nil {
			return nil
		}
		// The class remains the class of the registry's answer.
		err = fmt.Errorf("%w; layer URL %s: %s", err, withoutQuery(u), failure.Error())
		if ctx.Err() != nil || errdefs.IsDataLoss(failure) {
			break
		}
	}
	return err
}

// foreignURLs returns the URLs of a layer that its registry may not distribute.
func foreignURLs(d ocispec.Descriptor) []string {
	if !strings.Contains(d.MediaType, ".nondistributable.") && !strings.Contains(d.MediaType, ".foreign.") {
		return nil
	}
	var list []string
	for _, u := range d.URLs {
		if len(u) <= maxForeignURL && len(list) < maxForeignURLs {
			list = append(list, u)
		}
	}
	return list
}

func foreignOpener(h *host, address string) opener {
	return opener{stall: h.stall, open: func(ctx context.Context, header http.Header) (*http.Response, error) {
		return h.getURL(ctx, address, header)
	}}
}
