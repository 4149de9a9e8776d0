package registry

import (
	"net"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
)

// locality is the distance of an address from the node. A server may lead the node to addresses at
// the server's own distance or farther away.
type locality int

// Greater is nearer.
const (
	public     locality = iota
	private             // in a network of the operator
	loopback            // on the node itself
	restricted          // link-local, metadata of clouds, multicast: no registry may lead to it
)

// restrictedPrefixes are addresses at which clouds give metadata and credentials to the node, other
// than link-local ones, and addresses that no server has.
func restrictedPrefixes() []netip.Prefix {
	return []netip.Prefix{
		netip.MustParsePrefix("100.100.100.200/32"), // Alibaba Cloud
		netip.MustParsePrefix("168.63.129.16/32"),   // Azure
		netip.MustParsePrefix("192.0.0.192/32"),     // Oracle Cloud
		netip.MustParsePrefix("fd00:ec2::254/128"),  // AWS
		netip.MustParsePrefix("240.0.0.0/4"),        // reserved, RFC 1112
	}
}

// privatePrefixes are private networks that netip.Addr.IsPrivate does not know.
func privatePrefixes() []netip.Prefix {
	return []netip.Prefix{
		netip.MustParsePrefix("100.64.0.0/10"), // shared address space, RFC 6598
		netip.MustParsePrefix("192.0.0.0/24"),  // IETF protocol assignments, RFC 6890
		netip.MustParsePrefix("fec0::/10"),     // site-local, RFC 3879
	}
}

// localityOf returns the distance of an address. An IPv6 address that stands for an IPv4 address
// counts as the latter.
func localityOf(addr netip.Addr) locality {
	addr = embeddedIPv4(addr.WithZone("").Unmap())
	in := func(prefixes []netip.Prefix) bool {
		for _, p := range prefixes {
			if p.Contains(addr) {
				return true
			}
		}
		return false
	}
	switch {
	case addr.IsLinkLocalUnicast() || addr.IsMulticast() || in(restrictedPrefixes()):
		return restricted
	case addr.IsLoopback() || addr.IsUnspecified() || addr.Is4() && addr.As4()[0] == 0:
		// Linux connects to itself for the unspecified address.
		return loopback
	case addr.IsPrivate() || in(privatePrefixes()):
		return private
	}
	return public
}

// embeddedIPv4 returns the IPv4 address in a NAT64 (RFC 6052) or 6to4 (RFC 3056) address, and any
// other address unchanged.
func embeddedIPv4(addr netip.Addr) netip.Addr {
	if !addr.Is6() {
		return addr
	}
	b := addr.As16()
	switch {
	case netip.MustParsePrefix("64:ff9b::/96").Contains(addr):
		return netip.AddrFrom4([4]byte(b[12:16]))
	case netip.MustParsePrefix("2002::/16").Contains(addr):
		return netip.AddrFrom4([4]byte(b[2:6]))
	}
	return addr
}

// localityOfConn returns the distance of a server whose address has the form host:port.
func localityOfConn(address string) locality {
	ap, err := netip.ParseAddrPort(address)
	if err != nil {
		return restricted
	}
	return localityOf(ap.Addr())
}

// literalLocality returns the distance of a URL's host by its text alone: names count as public. It
// is for requests through a proxy, where the node does not see the address. A number that some
// resolvers read as an IPv4 address counts as restricted.
func literalLocality(u *url.URL) locality {
	host := u.Hostname()
	if addr, err := netip.ParseAddr(host); err == nil {
		return localityOf(addr)
	}
	if isLocalhost(host) || strings.HasSuffix(strings.ToLower(host), ".localhost") {
		return loopback
	}
	last := host[strings.LastIndex(strings.TrimSuffix(host, "."), ".")+1:]
	if _, err := strconv.ParseUint(strings.TrimSuffix(last, "."), 0, 64); err == nil {
		return restricted
	}
	return public
}

// origin returns scheme, host and port of a URL in a canonical form.
func origin(u *url.URL) string { return strings.ToLower(u.Scheme) + "://" + hostPort(u) }

// hostPort returns host and port of a URL in a canonical form.
func hostPort(u *url.URL) string {
	port := u.Port()
	if port == "" && strings.EqualFold(u.Scheme, "https") {
		port = "443"
	} else if port == "" {
		port = "80"
	}
	return net.JoinHostPort(strings.ToLower(u.Hostname()), port)
}
