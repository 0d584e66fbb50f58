/**
 * What the published client declares that its methods give, read from the declarations that it ships. They are generated, and so of a few forms
 * only; one that is not known here throws.
 */
import { readFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'

const RESOURCES = join(dirname(fileURLToPath(import.meta.resolve('@onkernel/hypeman'))), 'resources')

interface Field {
  readonly name: string
  readonly isOptional: boolean
  readonly type: string
}

export class PublishedTypes {
  readonly #interfaces = new Map<string, readonly Field[]>()
  readonly #aliases = new Map<string, string>()
  readonly #answers = new Map<string, string>()

  /** `methods` by their way from the client: `instances.autoStandby.hold`. */
  constructor(methods: readonly string[]) {
    for (const resource of new Set(methods.map((method) => method.slice(0, method.lastIndexOf('.'))))) {
      const text = readFileSync(join(RESOURCES, fileOf(resource)), 'utf8').replace(/\/\*\*[\s\S]*?\*\//g, '')
      this.#read(text)
      for (const [, name, answer] of text.matchAll(/^ {4}(\w+)\(.*\): APIPromise<(.+)>;$/gm))
        this.#answers.set(`${resource}.${name}`, answer ?? '')
    }
  }

  /** Of a stream, that of one message. */
  answerOf(method: string): string {
    const type = this.#answers.get(method)
    if (type === undefined) throw new Error(`No declaration says what ${method} gives`)
    return /^Stream<(.+)>$/.exec(type)?.[1] ?? type
  }

  /** Where `value` is not what `type` declares, in words; undefined when it is. Fields that are not declared are passed over. */
  misfit(value: unknown, type: string, where = 'it'): string | undefined {
    const options = splitOutside(type, '|')
    const misfits = options.map((option) => this.#misfitOfOne(value, option, where))
    return misfits.includes(undefined) ? undefined : options.length === 1 ? misfits[0] : `${where} is ${JSON.stringify(value)}, not ${type}`
  }

  #misfitOfOne(value: unknown, type: string, where: string): string | undefined {
    const not = `${where} is ${JSON.stringify(value)}, not ${type}`
    if (type === 'unknown') return undefined
    // For an answer without a body.
    if (type === 'void') return value === null || value === undefined ? undefined : not
    if (type === 'null') return value === null ? undefined : not
    if (type === 'string' || type === 'number' || type === 'boolean') return typeof value === type ? undefined : not
    if (/^'.*'$/.test(type)) return value === type.slice(1, -1) ? undefined : not
    const element = /^Array<(.*)>$/s.exec(type)?.[1]
    if (element !== undefined) {
      if (!Array.isArray(value)) return not
      return first(value, (one, index) => this.misfit(one, element, `${where}[${index}]`))
    }
    const mapped = /^\{\s*\[key: string\]: (.*);\s*\}$/s.exec(type)?.[1]
    if (mapped !== undefined) {
      if (typeof value !== 'object' || value === null) return not
      return first(Object.entries(value), ([key, one]) => this.misfit(one, mapped, `${where}.${key}`))
    }
    const name = type.replace(/^\w+API\./, '')
    const alias = this.#aliases.get(name)
    if (alias !== undefined) return this.misfit(value, alias, where)
    const fields = this.#interfaces.get(name)
    if (fields === undefined) throw new Error(`The published client declares no ${type}`)
    if (typeof value !== 'object' || value === null) return not
    return first(fields, (field) => {
      const inner = (value as Record<string, unknown>)[field.name]
      if (inner === undefined) return field.isOptional ? undefined : `${where}.${field.name} is missing`
      return this.misfit(inner, field.type, `${where}.${field.name}`)
    })
  }

  #read(text: string): void {
    for (const [, name = '', type = ''] of text.matchAll(/^export type (\w+) = ([^;]+);$/gm)) this.#aliases.set(name, type)
    for (const [, name = '', body = ''] of text.matchAll(/^export interface (\w+) \{\n([\s\S]*?)^\}/gm))
      this.#interfaces.set(name, fieldsOf(body, 4))
    for (const [, outer = '', body = ''] of text.matchAll(/^export declare namespace (\w+) \{\n([\s\S]*?)^\}/gm))
      this.#readInside(outer, body, 4)
  }

  #readInside(outer: string, body: string, indent: number): void {
    const margin = ' '.repeat(indent)
    const blocks = (kind: string) => body.matchAll(new RegExp(`^${margin}${kind} (\\w+) \\{\\n([\\s\\S]*?)^${margin}\\}`, 'gm'))
    for (const [, name, inner = ''] of blocks('interface')) this.#interfaces.set(`${outer}.${name}`, fieldsOf(inner, indent + 4))
    for (const [, name, inner = ''] of blocks('namespace')) this.#readInside(`${outer}.${name}`, inner, indent + 4)
  }
}

const kebab = (name: string): string => name.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`)

function fileOf(resource: string): string {
  const [outer = '', inner] = resource.split('.')
  if (outer === 'instances') return `instances/${kebab(inner ?? outer)}.d.ts`
  return `${kebab(outer)}.d.ts`
}

function fieldsOf(body: string, indent: number): Field[] {
  const field = new RegExp(`^ {${indent}}(\\w+)(\\??): ((?:[^;{]|\\{[^}]*\\})+);$`, 'gm')
  return [...body.matchAll(field)].map(([, name = '', optional, type = '']) => ({ name, isOptional: optional === '?', type }))
}

/** Splits at `mark` where no bracket is open. */
function splitOutside(text: string, mark: string): string[] {
  const parts = ['']
  let depth = 0
  for (const letter of text) {
    if ('<{['.includes(letter)) depth++
    else if ('>}]'.includes(letter)) depth--
    if (letter === mark && depth === 0) parts.push('')
    else parts.push((parts.pop() ?? '') + letter)
  }
  return parts.map((part) => part.trim()).filter((part) => part !== '')
}

function first<T>(list: readonly T[], find: (one: T, index: number) => string | undefined): string | undefined {
  for (const [index, one] of list.entries()) {
    const found = find(one, index)
    if (found !== undefined) return found
  }
  return undefined
}
