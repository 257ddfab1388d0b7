/**
 * IPv4 and IPv6 addresses: ranges, which of them hooks may call, the address of a request's caller, and whether a device's addresses
 * belong to several machines.
 *
 * `ipaddr.js` parses and compares them. Nothing here resolves names.
 */
import ipaddr from "ipaddr.js";

type Address = ipaddr.IPv4 | ipaddr.IPv6;

/** An address range: its first address, and the number of leading bits that count. */
export type AddressRange = readonly [Address, number];

/** Address ranges in CIDR notation, separated by commas; an empty text has none. @param name of the setting; @throws Error with a one-line message */
export function readRanges(text: string, name = "PERE_HOOKS_ALLOW"): readonly AddressRange[] {
  const entries = text.split(",").map((entry) => entry.trim());
  return entries.filter((entry) => entry !== "").map((entry) => readRange(entry, name));
}

function readRange(text: string, name: string): AddressRange {
  if (ipaddr.IPv4.isValidCIDRFourPartDecimal(text)) return ipaddr.IPv4.parseCIDR(text);
  const range = ipaddr.IPv6.isValidCIDR(text) ? ipaddr.IPv6.parseCIDR(text) : null;
  // Mapped addresses are compared as IPv4, so a range in this form would match nothing.
  if (range && !range[0].isIPv4MappedAddress()) return range;
  throw new Error(`${name} must be ranges like 10.0.0.0/8 or fd00::/8, comma separated, not "${text}"`);
}

const isAmong = (address: Address, ranges: readonly AddressRange[]): boolean =>
  ranges.some(([range, bits]) => range.kind() === address.kind() && address.match(range, bits));

/** The part of IPv6 that registries have assigned so far (RFC 4291, 2.4). ipaddr.js calls all the rest unicast, even `::127.0.0.1`. */
const GLOBAL_UNICAST = ipaddr.IPv6.parseCIDR("2000::/3");

/** Four bytes as an IPv4 address. */
const ipv4 = (bytes: readonly number[]): ipaddr.IPv4 => new ipaddr.IPv4([...bytes]);

/**
 * NAT64: the prefix that DNS64 uses for names that only have IPv4 (RFC 6052, 2.1). Local prefixes (RFC 8215), 6to4 and Teredo also embed IPv4
 * addresses, but which ones depends on the network: they are not public.
 */
const NAT64 = ipaddr.IPv6.parseCIDR("64:ff9b::/96");
const CARRIERS = ["64:ff9b:1::/48", "2002::/16", "2001::/32"].map((range) => ipaddr.IPv6.parseCIDR(range));

/** The address to check: for a NAT64 address, the IPv4 address in it, whatever IPv6 ranges are allowed. */
const leadsTo = (address: Address): Address =>
  address.kind() === "ipv6" && address.match(NAT64) ? ipv4(address.toByteArray().slice(12)) : address;

/** Whether it is public or allowed. */
export const isCallable = (text: string, allowed: readonly AddressRange[]): boolean =>
  ipaddr.isValid(text) && isGood(leadsTo(ipaddr.process(text)), allowed);

function isGood(address: Address, allowed: readonly AddressRange[]): boolean {
  if (address.kind() === "ipv6" && CARRIERS.some((range) => address.match(range))) return false;
  if (isAmong(address, allowed)) return true;
  return address.range() === "unicast" && (address.kind() === "ipv4" || address.match(GLOBAL_UNICAST));
}

/** The address of a host that needs no lookup; null: it is a name. */
export function literalAddress({ hostname }: URL): string | null {
  const host = hostname.replace(/^\[|\]$|\.+$/g, "");
  // `localhost` needs no resolver: RFC 6761, 6.3.
  if (host === "localhost" || host.endsWith(".localhost")) return "127.0.0.1";
  return ipaddr.isValid(host) ? host : null;
}

// -------------------------------------------------------------------------------------------------------------- callers

/** The IPv6 prefix of one household, office or machine, which may use any address in it (RFC 6177, RFC 8981). */
const IPV6_BITS = 64;

/** An address as proxies write it, with or without a port: `192.0.2.1:443`, `[2001:db8::1]:443`. */
const WITH_PORT = /^(?:\[([^\]]*)\]|([^:]*))(?::\d+)?$/;

/** Parses an address; an IPv6 address that maps an IPv4 one becomes that one. Null: it is not an address. */
function readAddress(text: string): Address | null {
  const [, inBrackets, plain] = WITH_PORT.exec(text) ?? [];
  const bare = inBrackets ?? plain ?? text;
  const good = ipaddr.IPv4.isValidFourPartDecimal(bare) || ipaddr.IPv6.isValid(bare);
  return good ? ipaddr.process(bare) : null;
}

/** IPv6 as its network, for example `2001:db8:1:2::/64`. */
function callerOf(address: Address): string {
  if (address.kind() === "ipv4") return address.toString();
  const { parts } = address as ipaddr.IPv6;
  const network = parts.map((part, n) => (n < IPV6_BITS / 16 ? part : 0));
  return `${new ipaddr.IPv6(network).toString()}/${IPV6_BITS}`;
}

/**
 * The address of a request's caller: the socket's, or if that is a trusted proxy, the address that the proxy reports. Each proxy appends its client
 * to X-Forwarded-For, and the part to the left of that may be forged. So the caller is the rightmost address that is not a trusted proxy. If an
 * address can't be parsed, the last parsed proxy is the caller.
 *
 * @param forwardedFor the header as received; several are joined by commas
 */
export function addressOf(
  socketAddress: string,
  forwardedFor: string | null,
  proxies: readonly AddressRange[],
): string {
  let address = readAddress(socketAddress);
  if (address === null) return socketAddress;
  const forwarded = proxies.length === 0 || forwardedFor === null ? [] : forwardedFor.split(",");
  while (forwarded.length > 0 && isAmong(address, proxies)) {
    const before = readAddress(forwarded.pop()!.trim());
    if (before === null) break;
    address = before;
  }
  return callerOf(address);
}

/**
 * Whether a device's addresses belong to several machines, usually two devices configured with the same name. Tabs of a browser share one address. A
 * machine may have one IPv4 and one IPv6 address, so these are not compared. Behind one NAT, or a proxy that is not in PERE_PROXIES, all devices have
 * the same address. A device that changed networks counts at both until its old connection is closed.
 */
export function isShared(addresses: readonly string[]): boolean {
  const ipv6 = addresses.filter((address) => address.includes(":")).length;
  return ipv6 > 1 || addresses.length - ipv6 > 1;
}
