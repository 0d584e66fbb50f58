import type { Database } from './database.ts'

/** Callers choose the ids of volumes, so these are told apart from those of instances. */
const NAMED = `
  SELECT json_each.value AS name, json_each.key AS depth, instances.id AS writer FROM instances, json_each(instances.disk)
  UNION ALL
  SELECT layer.value, layer.key, instances.id
    FROM instances, json_each(instances.volumes) AS attached, json_each(attached.value, '$.disk') AS layer
  UNION ALL
  SELECT json_each.value, json_each.key, 'volume ' || volumes.id FROM volumes, json_each(volumes.disk)
  UNION ALL
  SELECT json_each.value, json_each.key, NULL FROM snapshots, json_each(snapshots.disk)
  UNION ALL
  SELECT layer.value, layer.key, NULL
    FROM snapshots, json_each(snapshots.instance, '$.volumes') AS attached, json_each(attached.value, '$.disk') AS layer
`

/** The same by what each is a disk of: an instance's own, a volume, or a snapshot of either. */
const BY_KIND = `
  SELECT json_each.value AS name, 'overlay' AS kind FROM instances, json_each(instances.disk)
  UNION ALL
  SELECT layer.value, 'volume' FROM instances, json_each(instances.volumes) AS attached, json_each(attached.value, '$.disk') AS layer
  UNION ALL
  SELECT json_each.value, 'volume' FROM volumes, json_each(volumes.disk)
  UNION ALL
  SELECT json_each.value, 'snapshot' FROM snapshots, json_each(snapshots.disk)
  UNION ALL
  SELECT layer.value, 'snapshot'
    FROM snapshots, json_each(snapshots.instance, '$.volumes') AS attached, json_each(attached.value, '$.disk') AS layer
`

/** What a layer is counted as: of an instance before a volume, of what is alive before what is kept. */
export interface LayerUse {
  readonly kind: 'overlay' | 'volume' | 'snapshot'
  /** How many disks stand on it. */
  readonly users: number
}

/**
 * Who stands on which layer of a disk, asked of the rows of instances, volumes and snapshots: there is no count that could be wrong. A
 * name can only be learned from a row that has it, so one that no row has will never be named again.
 */
export class DiskLayers {
  readonly #db: Database

  constructor(db: Database) {
    this.#db = db
  }

  /** Those of `names` that no row has, but perhaps that of `except`: an instance's id, or a volume's after `volume `. */
  unnamed(names: readonly string[], except?: string): string[] {
    const others = this.#db.prepare(`SELECT name FROM (${NAMED}) WHERE writer IS NULL OR writer IS NOT ?`).all(except ?? '')
    const taken = new Set(others.map(({ name }) => String(name)))
    return names.filter((name) => !taken.has(name))
  }

  /** Those that are never written again, each once: all below an instance's top, and all of a snapshot. */
  frozen(): string[] {
    return this.#db
      .prepare(`SELECT name FROM (${NAMED}) GROUP BY name HAVING count(*) FILTER (WHERE depth = 0 AND writer IS NOT NULL) = 0`)
      .all()
      .map(({ name }) => String(name))
  }

  /** Of every layer that a row has. */
  uses(): Map<string, LayerUse> {
    return new Map(
      this.#db
        .prepare(
          `SELECT name, count(*) AS users,
             CASE WHEN max(kind = 'overlay') THEN 'overlay' WHEN max(kind = 'volume') THEN 'volume' ELSE 'snapshot' END AS kind
           FROM (${BY_KIND}) GROUP BY name`,
        )
        .all()
        .map(({ name, users, kind }) => [String(name), { kind: kind as LayerUse['kind'], users: Number(users) }]),
    )
  }
}
