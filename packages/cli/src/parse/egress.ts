/** `--credential` and `--egress`: variables whose values stay on the host, and what an instance may open without its proxy. */
import type { CreateInstanceRequest } from '@dormouse/api/instances.ts'
import type { Command } from 'commander'
import { usageFailure } from '../failure.ts'
import { collect } from './values.ts'

export interface EgressOptions {
  readonly credential?: string[]
  readonly egress?: string
}

export const addEgressOptions = (command: Command): Command =>
  command
    .option(
      '--credential <NAME@host[,host…][=Header: format]>',
      'keep the value of a variable on the host, and put it into what is asked of these hosts; may be repeated',
      collect,
    )
    .option('--egress <mode>', 'what it cannot open but by its proxy: all (with --credential when left out), http_https_only')

type Credentials = NonNullable<CreateInstanceRequest['credentials']>
type Mode = 'all' | 'http_https_only'

const BEARER = `Authorization: Bearer \${value}`
const MODES: Readonly<Record<string, Mode>> = { all: 'all', http_https_only: 'http_https_only', 'http-https-only': 'http_https_only' }

/** `variables` are those that the instance is given. */
export function egressOf(
  { credential = [], egress }: EgressOptions,
  variables: Readonly<Record<string, string>> = {},
): { readonly credentials?: Credentials; readonly egress?: { readonly enabled: true; readonly enforcement: { readonly mode: Mode } } } {
  if (credential.length === 0 && egress === undefined) return {}
  const mode = MODES[egress ?? 'all']
  if (mode === undefined) throw usageFailure(`${JSON.stringify(egress)} is no mode of --egress`, 'It takes: all, http_https_only')
  const parsed = credential.map((text) => parseCredential(text))
  for (const [index, { name }] of parsed.entries()) {
    if (!Object.hasOwn(variables, name))
      throw usageFailure(`--credential ${name} has no value`, `Give it with -e ${name}, or -e ${name}=value`)
    if (parsed.findIndex((other) => other.name === name) !== index)
      throw usageFailure(`--credential ${name} is given twice`, 'Name all its hosts in one')
  }
  const credentials = Object.fromEntries(
    parsed.map(({ name, hosts, header, format }) => [name, { source: { env: name }, inject: [{ as: { header, format }, hosts }] }]),
  )
  return { egress: { enabled: true, enforcement: { mode } }, ...(parsed.length > 0 && { credentials }) }
}

function parseCredential(text: string): { name: string; hosts: string[]; header: string; format: string } {
  const [, name = '', list = '', as = BEARER] = /^([^@=]+)@([^=]+?)(?:=(.*))?$/s.exec(text) ?? []
  const [, header = '', format = ''] = /^([^:\s]+):\s*(.*)$/s.exec(as) ?? []
  const hosts = list.split(',').map((host) => host.trim())
  if (name === '' || hosts.includes('') || header === '' || !format.includes(`\${value}`)) {
    throw usageFailure(
      `${JSON.stringify(text)} is no credential`,
      `Such as: --credential API_KEY@api.example.com, or 'API_KEY@api.example.com=X-Api-Key: \${value}'`,
    )
  }
  return { name, hosts, header, format }
}
