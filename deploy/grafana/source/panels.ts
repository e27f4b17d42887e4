// How panels are made and where they stand: the look of all of them, in one place. Knows no metric.

import {
  BigValueColorMode,
  BigValueGraphMode,
  BigValueJustifyMode,
  BigValueTextMode,
  type FieldColor,
  FieldColorModeId,
  type FieldConfig,
  GraphDrawStyle,
  GraphGradientMode,
  type GraphFieldConfig,
  GraphThresholdsStyleMode,
  LegendDisplayMode,
  LineInterpolation,
  MappingType,
  type Panel,
  PercentChangeColorMode,
  type RowPanel,
  SortOrder,
  StackingMode,
  type Threshold,
  ThresholdsMode,
  TooltipDisplayMode,
  type ValueMapping,
  VisibilityMode,
  VizOrientation,
} from '@grafana/schema';
import type { Options as StatOptions } from '@grafana/schema/dist/esm/raw/composable/stat/panelcfg/x/StatPanelCfg_types.gen';
import type {
  FieldConfig as GraphConfig,
  Options as GraphOptions,
} from '@grafana/schema/dist/esm/raw/composable/timeseries/panelcfg/x/TimeSeriesPanelCfg_types.gen';

/** The datasource that the person at the dashboard chose. */
export const DATASOURCE = { type: 'prometheus', uid: '${datasource}' };

/** Columns of Grafana's grid. */
const COLUMNS = 24;

/** A query and the name of its series. */
export interface Query {
  expr: string;
  legend?: string;
}

/** From this value on, this colour; the first step holds from the beginning. */
export type Steps = [string, ...[number, string][]];

/** What all panels have. */
interface Common {
  title: string;
  /** What it shows, and what to make of it. */
  description: string;
  queries: Query[];
  unit: string;
  decimals?: number;
  thresholds?: Steps;
}

/** One number. */
export interface Stat extends Common {
  /** Words for numbers. */
  words?: Record<string, { text: string; color: string }>;
  /** Without data. */
  otherwise?: string;
}

/** Lines over time. */
export interface Graph extends Common {
  /** Fixed colours of series by their name; the others get their own. */
  colors?: Record<string, string>;
  stacked?: boolean;
  /** Steps instead of slopes: for numbers that mean a state. */
  stepped?: boolean;
  max?: number;
  /** Draw the thresholds as areas. */
  areas?: boolean;
}

/** A panel without its place. */
export type Made = Omit<Panel, 'id' | 'gridPos'>;

function steps([first, ...rest]: Steps): Threshold[] {
  // Grafana wants null for "from the beginning", which its types do not know.
  const base = { value: null as unknown as number, color: first };
  return [base, ...rest.map(([value, color]) => ({ value, color }))];
}

function targets(queries: Query[], instant: boolean): Record<string, unknown>[] {
  return queries.map(({ expr, legend }, index) => ({
    datasource: DATASOURCE,
    refId: String.fromCharCode(65 + index),
    editorMode: 'code',
    expr,
    legendFormat: legend ?? '__auto',
    instant,
    range: !instant,
  }));
}

function defaults<T>(panel: Common, color: FieldColor, custom: T): FieldConfig<T> {
  return {
    color,
    custom: custom as T & Record<string, unknown>,
    mappings: [],
    thresholds: { mode: ThresholdsMode.Absolute, steps: steps(panel.thresholds ?? ['green']) },
    unit: panel.unit,
    ...(panel.decimals === undefined ? {} : { decimals: panel.decimals }),
  };
}

export function stat(panel: Stat): Made {
  const options: StatOptions = {
    colorMode: BigValueColorMode.Background,
    graphMode: BigValueGraphMode.None,
    justifyMode: BigValueJustifyMode.Center,
    orientation: VizOrientation.Auto,
    percentChangeColorMode: PercentChangeColorMode.Standard,
    reduceOptions: { calcs: ['lastNotNull'], fields: '', values: false },
    showPercentChange: false,
    textMode: BigValueTextMode.Value,
    wideLayout: true,
  };
  const words: ValueMapping[] = Object.entries(panel.words ?? {}).map(([value, result], index) => ({
    type: MappingType.ValueToText,
    options: { [value]: { ...result, index } },
  }));
  return {
    type: 'stat',
    title: panel.title,
    description: panel.description,
    datasource: DATASOURCE,
    targets: targets(panel.queries, true),
    fieldConfig: {
      defaults: {
        ...defaults(panel, { mode: FieldColorModeId.Thresholds }, {}),
        mappings: words,
        noValue: panel.otherwise ?? '–',
      },
      overrides: [],
    },
    options: { ...options },
  };
}

export function graph(panel: Graph): Made {
  const custom: GraphConfig & GraphFieldConfig = {
    axisBorderShow: false,
    axisSoftMin: 0,
    drawStyle: GraphDrawStyle.Line,
    fillOpacity: panel.stacked ? 40 : 10,
    gradientMode: GraphGradientMode.None,
    lineInterpolation: panel.stepped ? LineInterpolation.StepAfter : LineInterpolation.Linear,
    lineWidth: panel.stacked ? 1 : 2,
    showPoints: VisibilityMode.Never,
    spanNulls: false,
    stacking: { mode: panel.stacked ? StackingMode.Normal : StackingMode.None, group: 'A' },
    thresholdsStyle: {
      mode: panel.areas ? GraphThresholdsStyleMode.DashedAndArea : GraphThresholdsStyleMode.Off,
    },
  };
  const options: GraphOptions = {
    legend: {
      calcs: [],
      displayMode: LegendDisplayMode.List,
      placement: 'bottom',
      showLegend: true,
    },
    tooltip: { mode: TooltipDisplayMode.Multi, sort: SortOrder.Descending },
  };
  return {
    type: 'timeseries',
    title: panel.title,
    description: panel.description,
    datasource: DATASOURCE,
    targets: targets(panel.queries, false),
    fieldConfig: {
      defaults: {
        ...defaults(panel, { mode: FieldColorModeId.PaletteClassic }, custom),
        min: 0,
        ...(panel.max === undefined ? {} : { max: panel.max }),
      },
      overrides: Object.entries(panel.colors ?? {}).map(([name, fixedColor]) => ({
        matcher: { id: 'byName', options: name },
        properties: [{ id: 'color', value: { mode: FieldColorModeId.Fixed, fixedColor } }],
      })),
    },
    options: { ...options },
  };
}

/** A headed part of the dashboard: lines of panels that share the width. */
export interface Part {
  /** None for the part at the top. */
  title?: string;
  lines: { height: number; panels: Made[] }[];
}

/** Gives every panel its number and its place. */
export function place(parts: Part[]): (Panel | RowPanel)[] {
  const placed: (Panel | RowPanel)[] = [];
  let y = 0;
  for (const part of parts) {
    if (part.title !== undefined) {
      placed.push({
        type: 'row',
        id: placed.length + 1,
        title: part.title,
        collapsed: false,
        gridPos: { x: 0, y, w: COLUMNS, h: 1 },
        panels: [],
      });
      y += 1;
    }
    for (const { height, panels } of part.lines) {
      const w = COLUMNS / panels.length;
      if (!Number.isInteger(w)) throw new Error(`${panels.length} panels do not fill a line`);
      panels.forEach((panel, index) => {
        const gridPos = { x: index * w, y, w, h: height };
        placed.push({ id: placed.length + 1, gridPos, ...panel });
      });
      y += height;
    }
  }
  return placed;
}
